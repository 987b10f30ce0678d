"""The official arrangement in plain PyTorch: losses and train step, the reference of parity tests and benchmarks."""

from collections.abc import Callable
from itertools import permutations

import torch
import torch.nn.functional as F

from clipsep_jax.config import Config, ObjectiveConfig
from tests.torch_twin import TorchCLIPSep


def bce(mask: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy(mask, target, weight, reduction="none").mean(dim=(-2, -1))


def torch_loss(config: ObjectiveConfig, query, noise, targets, weight) -> torch.Tensor:
    """The loss from mask logits [B N K T], noise logits [B N K T], targets and weight [B K T]."""
    num_sources = targets.shape[1]
    sources = range(num_sources)
    q, p = torch.sigmoid(query), torch.sigmoid(noise)
    if config.name == "weighted":
        return torch.stack([bce(q[:, n], targets[:, n], weight) for n in sources]).mean()
    orders = list(permutations(sources))
    if config.name == "permutation_invariant":
        cost = [sum(bce(q[:, o[n]], targets[:, n], weight) for n in sources) / num_sources for o in orders]
        return torch.stack(cost).min(dim=0).values.mean()
    joint = [[1 - F.relu(1 - (q[:, n] + p[:, m])) for m in sources] for n in sources]
    cost = [sum(bce(joint[n][o[n]], targets[:, n], weight) for n in sources) / num_sources for o in orders]
    level = p.sum(dim=1).mean()
    if config.regularizer == "ratio":
        level = level / q.sum(dim=1).mean()
    return torch.stack(cost).min(dim=0).values.mean() + config.regularizer_weight * F.relu(level - config.gamma)


class TorchTrainer:
    """Adam behind a clip, and the official schedule.

    Args:
        config: what to train.
        dtype: of parameters and inputs.
        device: where.
        tuned: channels last, autocast to bfloat16 where `config` asks for it, and `torch.compile`, none of which the
            official code uses.
        on_gradients: called before the gradients are clipped.
    """

    def __init__(
        self,
        config: Config,
        dtype: torch.dtype,
        *,
        device: str = "cpu",
        tuned: bool = False,
        on_gradients: Callable[[], None] | None = None,
    ):
        self.config, self.dtype, self.device, self.on_gradients = config, dtype, device, on_gradients
        options = config.optimizer
        torch.manual_seed(0)
        self.module = TorchCLIPSep(config.model).to(device, dtype).train()
        self.parameters = dict(self.module.named_parameters())
        self.adam = torch.optim.Adam(self.parameters.values(), options.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, self.learning_rate_factor)
        self.forward = self.module
        self.autocast = False
        if tuned:
            self.module.to(memory_format=torch.channels_last)
            self.forward = torch.compile(self.module)
            self.autocast = config.train.precision == "bfloat16"
            torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as JAX has it by default

    def learning_rate_factor(self, step: int) -> float:
        options = self.config.optimizer
        if step < options.warmup_steps:
            return (step + 1) / options.warmup_steps
        done = (step - options.warmup_steps) / (options.decay_end_step - options.warmup_steps)
        return 1 - (1 - options.final_factor) * min(1, done)

    def step(
        self, magnitude: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, query: torch.Tensor | None
    ) -> float:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            masks = self.forward(torch.log(magnitude), query)
        noise = masks[1] if masks[1] is not None else torch.zeros_like(masks[0])
        loss = torch_loss(self.config.objective, masks[0].to(self.dtype), noise.to(self.dtype), targets, weight)
        self.adam.zero_grad()
        loss.backward()
        if self.on_gradients:
            self.on_gradients()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optimizer.max_gradient_norm)
        self.adam.step()
        self.schedule.step()
        return loss.item()


class TorchFrameEncoder:
    """What the official loop does to frames in every step: CLIP ViT-B/32, here with random weights."""

    def __init__(self, device: str = "cpu", *, autocast: bool = False):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        torch.manual_seed(0)
        self.device, self.autocast = device, autocast
        self.model = CLIPVisionModelWithProjection(CLIPVisionConfig()).to(device).eval()

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B 3 224 224] -> [B 512], waiting for the result."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            embeddings = self.model(pixels).image_embeds
        if self.device == "cuda":
            torch.cuda.synchronize()
        return embeddings
