"use strict";
// Enlarging: a dialog that goes through the pictures of one image with the arrow keys.
const viewer = document.getElementById("viewer");
const large = viewer.querySelector("img");
const caption = viewer.querySelector("p");
let group = [];
let index = 0;

function show(next) {
  index = (next + group.length) % group.length;
  const picture = group[index].querySelector("img");
  large.src = picture.src;
  large.alt = picture.alt;
  caption.textContent = picture.alt;
}

for (const button of document.querySelectorAll("button.enlarge")) {
  button.addEventListener("click", () => {
    group = [...document.querySelectorAll(`button.enlarge[data-group="${button.dataset.group}"]`)];
    show(group.indexOf(button));
    viewer.showModal();
  });
}
for (const button of viewer.querySelectorAll("[data-go]")) {
  button.addEventListener("click", () => show(index + Number(button.dataset.go)));
}
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(index - 1);
  if (event.key === "ArrowRight") show(index + 1);
});
viewer.addEventListener("close", () => group[index].focus());
large.addEventListener("click", () => viewer.close());

// Comparing: the pictures are those of the panels above, not embedded again.
for (const compare of document.querySelectorAll(".compare")) {
  const stage = compare.querySelector(".stage");
  const slider = compare.querySelector("input");
  const over = stage.querySelector(".over");
  const source = (name) => document.getElementById(`p${compare.dataset.number}-${name}`).src;
  const split = (percent) => {
    slider.value = percent;
    stage.style.setProperty("--split", `${slider.value}%`);
  };
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    split((100 * (event.clientX - box.left)) / box.width);
  };
  stage.querySelector(".under").src = source("original");
  over.src = source(over.dataset.panel);
  slider.addEventListener("input", () => split(slider.value));
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (event.buttons) drag(event);
  });
  const buttons = compare.querySelectorAll(".choices button");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      over.src = source(button.dataset.panel);
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      for (const name of compare.querySelectorAll(".side.right, .against")) name.textContent = button.textContent;
    });
  }
  compare.hidden = false;
}
