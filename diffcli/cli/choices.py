"""The names that options take, for help, completion and answers at once; the tests hold them against the registries."""

SAMPLERS = (
    *("ddpm", "ddim", "plms", "ab4", "euler", "euler_ancestral", "heun", "edm_heun"),
    *("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc", "ode"),
)
METRICS = (
    *("fid", "kid", "is", "precision", "recall", "accuracy", "bpd", "psnr", "ssim", "lpips", "consistency", "follows"),
    *("cosine", "mse", "retrieval", "dice", "iou", "ged", "hm_iou", "ece"),
)
