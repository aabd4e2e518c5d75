"""A model that fails on an image only if no provider can do it: smaller batches, then the next provider."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pacs_node.conditions import Conditions
from pacs_node.errors import ModelError
from pacs_node.infer.cards import Card
from pacs_node.infer.providers import Settings, choices_for
from pacs_node.infer.results import AnomalyResult, ImageResult, Progress
from pacs_node.infer.starting import ON_GPU, ProviderError

if TYPE_CHECKING:
    from pacs_node.infer.session import Session

log = logging.getLogger(__name__)

Result = ImageResult | AnomalyResult


class Network(Protocol):
    """What the three tasks have in common: sessions, and an image in, a result out."""

    @property
    def sessions(self) -> Sequence[Session]:
        """The model's graphs, opened."""

    def __call__(
        self,
        image: NDArray[np.float32],
        conditions: Conditions,
        seed: int,
        progress: Progress | None = None,
        /,
    ) -> Result:
        """One image through the model."""


class Model:
    """A model of one card, ready to run.

    When a provider fails on an image, the image is run again from its start: with one image at a time in
    each graph if it was memory that was missing and there were more, and then on the providers that follow.
    What was done stands in the log and in the result's ``parameters["warnings"]``; the next image tries the
    first provider anew.
    """

    def __init__(self, card: Card, settings: Settings, make: Callable[[Card, Settings], Network]) -> None:
        """Raises ModelError if the model cannot be loaded, for another reason than memory."""
        self.card, self.settings, self._make = card, settings, make
        self._network: Network | None = None
        self._next: Model | None = None
        try:
            self._loaded()
        except ProviderError as error:
            # Not having the memory now says nothing of the next image.
            log.warning("%s: %s", card.name, error)

    @property
    def sessions(self) -> Sequence[Session]:
        """The graphs on the provider that is tried first. Raises ProviderError if it lacks the memory."""
        return self._loaded().sessions

    def __call__(
        self,
        image: NDArray[np.float32],
        conditions: Conditions,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Result:
        """``image`` float32 (H, W) in [0, 1], bone bright; the same seed gives the same result.

        Raises Refused or ValueError on an unfit image, ModelError if the model fails on every provider.
        """
        try:
            return self._loaded()(image, conditions, seed, progress)
        except ProviderError as error:
            failed = error
        if failed.out_of_memory and failed.batch > 1 and self._network is not None:
            told = f"{failed.provider} ran out of memory with {failed.batch} images at once; run one by one"
            log.warning("%s: %s", self.card.name, told)
            with _one_at_a_time(self._network.sessions):
                try:
                    return _with_warning(self._network(image, conditions, seed, progress), told)
                except ProviderError as error:
                    failed = error
        settings = self._settings_without(failed)
        reason = "ran out of memory" if failed.out_of_memory else "failed"
        told = f"{failed.provider} {reason}; run on the next provider"
        log.warning("%s: %s: %s", self.card.name, told, failed)
        # The frames of a traceback hold the sessions, and so the memory that the next provider needs.
        failed.__cause__ = failed.__traceback__ = None
        following = self._following(settings, on_host=failed.provider not in ON_GPU)
        return _with_warning(following(image, conditions, seed, progress), told)

    def _loaded(self) -> Network:
        if self._network is None:
            network = self._make(self.card, self.settings)
            provider = network.sessions[0].choice.provider
            for warning in dict.fromkeys(w for s in network.sessions for w in s.choice.warnings):
                log.warning("%s: %s; it runs on %s", self.card.name, warning, provider)
            self._network = network
        return self._network

    def _settings_without(self, failed: ProviderError) -> Settings:
        """The same without the provider that failed. Raises ModelError if that leaves none."""
        without = (*self.settings.without, failed.provider)
        settings = dataclasses.replace(self.settings, without=without)
        try:
            for role in self.card.files:
                choices_for(self.card, role, settings)
        except ModelError:
            remedy = (
                "Give the machine more memory, or take a model with a smaller input"
                if failed.out_of_memory
                else "See: pacs-node models verify"
            )
            raise ModelError(f"{str(failed).rstrip('.')}. No provider is left to try. {remedy}.") from failed
        return settings

    def _following(self, settings: Settings, *, on_host: bool) -> Model:
        """The same model on the providers left; ``on_host``: the one that failed was a processor's."""
        if on_host:
            self._network = None  # both need the host's memory, so neither is kept
            return Model(self.card, settings, self._make)
        if self._next is None or self._next.settings != settings:
            self._next = Model(self.card, settings, self._make)
        return self._next


@contextmanager
def _one_at_a_time(sessions: Sequence[Session]) -> Iterator[None]:
    before = [session.single for session in sessions]
    for session in sessions:
        session.single = True
    try:
        yield
    finally:
        for session, single in zip(sessions, before, strict=True):
            session.single = single


def _with_warning(result: Result, warning: str) -> Result:
    warnings = [warning, *result.parameters.get("warnings", [])]
    return dataclasses.replace(result, parameters=result.parameters | {"warnings": warnings})
