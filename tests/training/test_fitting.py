import torch
from torch.nn.functional import one_hot

from jem.sampling import LangevinStep
from jem.training.fitting import fit_base, prototypes


def test_prototypes_find_the_groups_within_a_class(generator):
    centres = 20 * torch.randn(6, 5, generator=generator)
    groups = torch.arange(96) % 6
    x = centres[groups] + 0.1 * torch.randn(96, 5, generator=generator)
    found = prototypes(x, groups // 3, most=3)
    assert torch.unique(torch.stack([found, groups]), dim=1).shape[1] == 6
    few = prototypes(x[:20], torch.zeros(20, dtype=torch.long))
    assert len(few.unique()) == 2, "one for each eight rows"


def test_between_the_groups_of_a_class_embeddings_are_unlikely(generator):
    groups = torch.arange(320) % 4
    centres = 3 * torch.randn(4, 120, generator=generator)
    x = centres[groups] + 0.3 * torch.randn(320, 120, generator=generator)
    domain = x.amin(dim=0) - 1, x.amax(dim=0) + 1
    base = fit_base(x, groups // 2, domain, LangevinStep(0.05, 0.1))
    middle = centres[:2].mean(dim=0), centres[2:].mean(dim=0)
    assert base.tempered_log_q(torch.stack(middle)).max() < base.tempered_log_q(x).min()


def test_a_table_of_one_hot_columns_is_no_embedding(generator):
    x = one_hot(torch.randint(10, (320, 12), generator=generator)).float()
    none = x.clone()
    none[:, 3] = 0  # of no level
    x, none = x.flatten(1), none.flatten(1)
    base = fit_base(x, torch.arange(320) % 2, (x[0] - 9, x[0] + 9), LangevinStep(0.05, 0.1))
    assert base.misfit(none).min() > 10 * base.misfit(x).max() + 1
