"""Sampling from a diffusion model: noise, samplers as plans, and the one loop that walks them.

One notation for the literature. At noise level t a sample is x_t = alpha_t x_0 + sigma_t e with e ~ N(0, 1):

    here       DDPM [1]          DDIM [2]           SDE [3], VP        DPM-Solver++ [4]  diffusers
    alpha_t    sqrt(abar_t)      sqrt(alpha_t)      exp(-int beta/2)   alpha_t           sqrt(abar)
    sigma_t    sqrt(1 - abar_t)  sqrt(1 - alpha_t)  std of p_0t        sigma_t           sqrt(1 - abar)
    clean      x_0               f_theta            E[x_0 | x_t]       x_theta           pred_original_sample
    epsilon    eps_theta         eps_theta          -sigma_t * score   eps_theta         "epsilon"
    velocity                                                           v_theta [5]       "v_prediction"
    score                                           s_theta                              (ScoreSde…)

All that a family of noise is, is how alpha and sigma belong together: alpha^2 + sigma^2 = 1 (variance
preserving, VP), sigma = 1 - alpha^2 (sub-VP), alpha = 1 (variance exploding, VE, and the noise-conditioned
score networks of [10]). Their quotient sigma / alpha, the *ratio*, orders the levels in every family, and x /
alpha follows one and the same differential equation in it; the half log-SNR of [4] is -log(ratio).

A network's prediction is first turned into the clean estimate, which alone may be limited. A sampler is then
a *plan*: a list of steps, each with the level at which the network is asked and the coefficients of an affine
update over a few registers,

    x_s = clean * x_0 + last * x_0' + before * x_0'' + noisy * x_t + base * b + noise * z,   z ~ N(0, 1)

where x_0' and x_0'' are the last two clean estimates and b is a point that was kept. One loop (loop.py) walks
every plan, one small ONNX graph (update.onnx) does every update, on the device of the network. A new sampler
is a new function that makes a plan:

    noise.py   the levels of a model: schedules, families
    rules.py   which sampler goes with which model, in sentences
    spacing.py the levels that are visited
    plans.py   DDPM, DDIM, Euler, Heun, DPM-Solver++, consistency sampling: from level to level
    sde.py     the stochastic differential equations and score networks: predictors, correctors, Langevin
    loop.py    the walk

[1] Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models. NeurIPS 2020, arXiv 2006.11239
[2] Song, Meng, Ermon: Denoising Diffusion Implicit Models. ICLR 2021, arXiv 2010.02502
[3] Song et al.: Score-Based Generative Modeling through SDEs. ICLR 2021, arXiv 2011.13456
[4] Lu et al.: DPM-Solver++. 2022, arXiv 2211.01095
[5] Salimans, Ho: Progressive Distillation for Fast Sampling of Diffusion Models. ICLR 2022, arXiv 2202.00512
[6] Nichol, Dhariwal: Improved Denoising Diffusion Probabilistic Models. ICML 2021, arXiv 2102.09672
[7] Rombach et al.: High-Resolution Image Synthesis with Latent Diffusion Models. CVPR 2022, arXiv 2112.10752
[8] Lin et al.: Common Diffusion Noise Schedules and Sample Steps are Flawed. WACV 2024, arXiv 2305.08891
[9] Sun et al.: BS-LDM: Effective Bone Suppression in High-Resolution Chest X-Ray Images with Conditional
    Latent Diffusion Models. JBHI 2025, arXiv 2412.15670
[10] Song, Ermon: Generative Modeling by Estimating Gradients of the Data Distribution. NeurIPS 2019, arXiv
    1907.05600; and Improved Techniques for Training Score-Based Generative Models, NeurIPS 2020, arXiv
    2006.09011
[11] Karras et al.: Elucidating the Design Space of Diffusion-Based Generative Models. NeurIPS 2022, arXiv
    2206.00364
[12] Luo et al.: Latent Consistency Models. 2023, arXiv 2310.04378
[13] Sun et al.: GL-LCM: Global-Local Latent Consistency Models for Fast High-Resolution Bone Suppression in
    Chest X-Ray Images. MICCAI 2025, arXiv 2508.03357
[14] Kazerouni et al.: Diffusion Models in Medical Imaging: A Comprehensive Survey. MedIA 2023, arXiv
    2211.07804
"""
