"""What test_distributed.py has torchrun start: `distributed_job.py FOLDER SCENARIO ...`."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from test_trainer import SMALL, UNSTABLE, blobs, model_of
from torch import nn

from jem import networks
from jem.errors import JemError
from jem.model import JEM
from jem.training.trainer import Trainer

SMALL = replace(SMALL, batch_size=16, num_chains=16, buffer_size=16, checkpoint_every=4)
QUIET = {"noise_std": 0.0, "reinit_prob": 0.0, "augment_noise": 0.0, "clip_to_domain": False}
"""Nothing drawn at random but the first chains, so that one process can be given the same."""

EQUAL = {
    "fused": replace(
        SMALL, **QUIET, epochs=2, mean_energy_l2=0.1, gap_limit=2.0, energy_l2=0.05,
        max_grad_norm=1.0, class_weight="balanced", step_size=0.5,
    ),
    "classic": replace(
        SMALL, **QUIET, epochs=2, fused=False, optimizer="sgd", learning_rate=0.05,
        adaptive_sam_rho=0.5, separate_density_batches=True, density_batch_size=8, step_size=0.5,
    ),
    "plain": replace(
        SMALL, objective="none", epochs=2, class_weight="balanced", augment_noise=0.0
    ),
}  # fmt: skip


class Unused(nn.Module):
    """A network of a person's own, with a part that it does not use."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = networks.mlp((2,), 2, width=8, depth=1), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


def uneven(count=96):
    """Blobs of which one class is rarer."""
    x, y = blobs(count)
    keep = (y == 0) | (torch.arange(count) % 4 == 1)
    return x[keep].to(torch.get_default_dtype()), y[keep]


class Recording(Trainer):
    """Keeps the first chains of all processes, or begins with those that it is given."""

    given = None

    def _begin(self, resume):
        negatives = self.state.chains
        if negatives is not None and self.given is not None:
            negatives.buffer.chains = self.given.clone()
        if negatives is not None:
            self.first_chains = torch.cat(self.ranks.gather(negatives.buffer.chains))
        super()._begin(resume)


def equal(name, given=None):
    """Train a scenario in float64; what a run ends with, and the chains it began with."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    model = JEM(Unused() if name == "plain" else networks.mlp((2,), 2, width=8, depth=2))
    trainer = Recording(model, EQUAL[name], seed=1, device="cpu")
    trainer.given = given
    result = trainer.fit(uneven(), uneven(64))
    state = trainer.state.state_dict()
    parameters = [p.detach() for p in model.parameters()]
    for other in trainer.ranks.gather(parameters):
        assert all(torch.equal(p, q) for p, q in zip(parameters, other, strict=True))
    return {
        "first_chains": getattr(trainer, "first_chains", None),
        "parameters": parameters,
        "chains": state["chains"],
        "epochs": [{k: v for k, v in m.items() if k != "seconds"} for m in result.epochs],
    }


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.SiLU(), nn.Linear(8, 2)
    )


def batch_norm(folder, resume, stop_at=None, die_at=None):
    """A run with everything random; it may be cut, or lose a process, on the way."""
    recipe = replace(SMALL, epochs=4, buffer_size=32, augment_noise=0.1)

    class Cut(Trainer):
        def update(self, batch):
            first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
            if self.state.progress.iteration == die_at and self.ranks.rank == 1 and first_life:
                os._exit(3)
            return super().update(batch)

    def stop(metrics):
        if metrics["epoch"] == stop_at:
            raise KeyboardInterrupt

    trainer = Cut(JEM(network()), recipe, run_dir=folder, seed=2, device="cpu")
    try:
        trainer.fit(blobs(), blobs(64, seed=1), resume=resume, on_epoch=stop)
    except KeyboardInterrupt:
        sys.exit(0)
    except JemError as error:
        sys.stderr.write(f"rank {trainer.ranks.rank}: {type(error).__name__}: {error}\n")
        sys.exit(2)


def unstable(folder):
    """A run that diverges and recovers."""
    recipe = replace(
        UNSTABLE, batch_size=16, num_chains=16, buffer_size=32, epochs=10, checkpoint_every=10
    )
    trainer = Trainer(model_of(), recipe, run_dir=folder, device="cpu")
    result = trainer.fit(blobs())
    ends = trainer.ranks.gather(list(trainer.model.parameters()))
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))
    assert trainer.ranks.gather(result.recoveries) == [result.recoveries] * 2


def main(folder, scenarios):
    torch.set_num_threads(1)
    for name in scenarios:
        if name == "unstable":
            unstable(folder)
            continue
        if name in EQUAL:
            result = equal(name)
            if int(os.environ.get("RANK", "0")) == 0:
                torch.save(result, folder / f"{name}.pt")
            continue
        word, _, value = name.partition(":")
        batch_norm(
            folder,
            resume=word == "resume",
            stop_at=int(value) if word == "stop" else None,
            die_at=int(value) if word == "die" else None,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
