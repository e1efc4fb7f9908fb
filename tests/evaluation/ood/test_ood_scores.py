"""Every score: its sign, its value by other means, and that it leaves the model as it was."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional as F

from jem.errors import InputError
from jem.evaluation.ood import SCORES, OODDetector, Score
from jem.evaluation.ood.features import features_of, last_linear
from jem.model import JEM
from jem.networks import mlp

CLASS_SCORES = ["max_probability", "max_logit", "entropy", "gen"]
FEATURE_SCORES = ["knn", "mahalanobis"]
HEAD_SCORES = ["react", "scale", "vim"]
OF_ALL = [name for name in SCORES if name not in HEAD_SCORES]
"""Scores of any network; the others need a linear head."""


def score(model, x, name, reference=None, **options):
    return OODDetector(model, name, reference, **options).score(x)


class Islands(nn.Module):
    """Three classes in the plane; far out log p(x) falls, p(y|x) levels off, the slope grows."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        angles = torch.arange(3, dtype=dtype) * 2.1
        self.centres = nn.Parameter(2 * torch.stack([angles.cos(), angles.sin()], dim=1))

    def features(self, x):
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)

    def forward(self, x):
        distances = (x[:, None] - self.centres).square().sum(dim=2)
        return -x.square().sum(dim=1, keepdim=True) / 8 - 2 * torch.log1p(distances)


class Bowl(nn.Module):
    """K = 1: E(x) = |x|^2 / 2."""

    def forward(self, x):
        return -x.square().flatten(1).sum(dim=1, keepdim=True) / 2


def island_points(num, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    noise = 0.2 * torch.randn(num, 2, generator=generator, dtype=torch.float64)
    x = Islands().centres.detach()[labels] + noise
    return x.to(dtype), labels


@pytest.fixture
def islands():
    return JEM(Islands())


@pytest.fixture
def reference():
    return island_points(120, seed=1)


@pytest.mark.parametrize("name", OF_ALL)
def test_far_away_points_score_lower(name, islands, reference):
    near, _ = island_points(60)
    directions = F.normalize(torch.randn(60, 2, dtype=torch.float64), dim=1)
    near_scores = score(islands, near, name, reference=reference)
    far_scores = score(islands, 40 * directions, name, reference=reference)
    assert near_scores.min() > far_scores.max()


@pytest.mark.parametrize("name", OF_ALL)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_scores_are_the_same_in_every_gradient_mode(name, context, islands, reference):
    x, _ = island_points(7)
    expected = score(islands, x, name, reference=reference)
    with context():
        inside = x.clone()  # in inference mode: a tensor that can hold no gradient
        found = score(islands, inside, name, reference=reference)
    assert found.equal(expected)
    assert not found.requires_grad
    assert not found.is_inference()


@pytest.mark.parametrize("name", OF_ALL)
@pytest.mark.parametrize("batch_size", [4, 100])
def test_batches_change_nothing_but_rounding(name, batch_size, islands, reference):
    x, _ = island_points(11)
    whole = score(islands, x, name, reference=reference)
    parts = score(islands, x, name, reference=reference, batch_size=batch_size)
    single = score(islands, x[3], name, reference=reference)
    assert whole.shape == (11,)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(single, whole[3:4])


def test_a_new_score_is_a_function_and_a_line_in_the_table(monkeypatch, islands, reference):
    def margin(logits, *, scale=1.0):
        best = logits.topk(2, dim=1).values
        return scale * (best[:, 0] - best[:, 1])

    monkeypatch.setitem(SCORES, "margin", Score("logits", margin))
    x, _ = island_points(40)
    logits = islands.logits(x).detach().sort(dim=1).values
    detector = OODDetector(islands, "margin", scale=3.0).fit(x)
    torch.testing.assert_close(detector.score(x), 3 * (logits[:, 2] - logits[:, 1]))


@pytest.mark.parametrize("name", CLASS_SCORES)
def test_a_model_of_one_output_has_no_classes(name):
    with pytest.raises(InputError, match="K = 1"):
        score(JEM(Bowl()), torch.zeros(2, 3), name)


def test_logit_scores_equal_their_formulas(islands):
    x, _ = island_points(9)
    logits = islands.logits(x).detach()
    p = logits.softmax(1)
    expected = {
        "log_density": logits.exp().sum(1).log(),
        "max_probability": p.max(1).values,
        "max_logit": logits.max(1).values,
        "entropy": (p * p.log()).sum(1),
        "gen": -(p**0.1 * (1 - p) ** 0.1).sum(1),
    }
    for name, values in expected.items():
        torch.testing.assert_close(score(islands, x, name), values)


class Passed(nn.Module):
    """Inputs are the logits."""

    def forward(self, x):
        return 1.0 * x


def test_gen_ranks_confident_inputs_and_counts_the_largest_classes():
    model = JEM(Passed())
    sure = torch.tensor([[20.0, 0, 0], [40.0, 0, 0], [80.0, 0, 0]])
    assert (score(model, sure, "gen").diff() > 0).all()
    assert (score(model, sure, "max_probability") == 1).all()
    x = torch.randn(4, 6, dtype=torch.float64)
    p = x.softmax(1).sort(1, descending=True).values[:, :2]
    expected = -(p**0.5 * (1 - p) ** 0.5).sum(1)
    torch.testing.assert_close(score(model, x, "gen", gamma=0.5, num_classes=2), expected)


def test_knn_equals_scikit_learn(islands, reference):
    x, _ = island_points(9)
    z, bank = (F.normalize(islands.network.features(a), dim=1).numpy() for a in (x, reference[0]))
    distances, _ = NearestNeighbors(n_neighbors=7).fit(bank).kneighbors(z)
    found = score(islands, x, "knn", reference=reference, k=7)
    np.testing.assert_allclose(found, -distances[:, -1], atol=1e-7)


def test_knn_tells_distances_apart_where_all_features_point_one_way():
    """Unit vectors within 1e-3 of each other: expanded squares of float32 have no digits left."""
    network = nn.Sequential(nn.Identity())
    network.features = lambda x: x
    generator = torch.Generator().manual_seed(0)
    bank = 1 + 3e-4 * torch.randn(500, 8, generator=generator)
    x = 1 + 3e-4 * torch.randn(50, 8, generator=generator)
    found = score(JEM(network), x, "knn", reference=(bank, None), k=1)
    z, rows = (F.normalize(a.double(), dim=1) for a in (x, bank))
    expected = -(z[:, None] - rows).norm(dim=2).amin(dim=1)
    torch.testing.assert_close(found.double(), expected, atol=0, rtol=0.02)


def test_knn_looks_through_more_than_one_chunk_of_the_bank():
    model, generator = JEM(mlp((2,), 2, width=4, depth=1)).double().eval(), torch.Generator()
    x = torch.randn(9000, 2, generator=generator.manual_seed(0), dtype=torch.float64)
    z = F.normalize(model.network.features(x).detach(), dim=1)
    expected = -torch.cdist(z[:3], z).sort(dim=1).values[:, 4]
    found = score(model, x[:3], "knn", (x, None), k=5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_mahalanobis_equals_scikit_learn_and_numpy(islands, reference):
    x, _ = island_points(9)
    z, bank = (islands.network.features(a).numpy() for a in (x, reference[0]))
    labels = reference[1].numpy()
    means = np.stack([bank[labels == c].mean(0) for c in range(3)])
    covariance, _ = ledoit_wolf(bank - means[labels], assume_centered=True)
    d = z[:, None] - means
    expected = -np.einsum("nci,ij,ncj->nc", d, np.linalg.inv(covariance), d).min(1)
    found = score(islands, x, "mahalanobis", reference=reference)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_mahalanobis_takes_more_features_than_inputs_and_constant_ones():
    model = JEM(mlp((2,), 3, width=64, depth=1))
    x = torch.randn(6, 2)
    assert score(model, x, "mahalanobis", reference=(x, [0, 0, 2, 2, 5, 5])).isfinite().all()
    same = torch.ones(6, 2)
    found = score(model, torch.cat([same, -same]), "mahalanobis", reference=(same, None))
    assert found.isfinite().all()
    assert (found[:6] > found[6:]).all()


@pytest.mark.parametrize("name", FEATURE_SCORES)
def test_scores_of_features_say_what_they_lack(name, islands, reference):
    x, labels = reference
    with pytest.raises(InputError, match="reference="):
        score(islands, x, name)
    with pytest.raises(InputError, match="linear layer or a method"):
        score(JEM(Bowl()), x, name, reference)
    with pytest.raises(InputError, match="`reference`"):
        score(islands, x, name, (x[:0], labels[:0]))
    with pytest.raises(InputError, match="finite"):
        score(islands, x, name, (x * torch.inf, labels))
    with pytest.raises(InputError, match="a label for each"):
        score(islands, x, name, (x, labels[:5]))


def test_options_out_of_range_and_unknown_names_are_refused(islands, reference):
    x, _ = reference
    for name, options, wrong in (
        ("knn", {"k": 0}, "`k`"), ("knn", {"k": 121}, "`k`"), ("gen", {"gamma": -1.0}, "`gamma`"),
        ("gen", {"num_classes": 0}, "`num_classes`"),
        ("log_density", {"gamma": 0.1}, "option"), ("energy", {}, "`score`"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=wrong):
            score(islands, x, name, reference, **options)


def test_no_inputs_give_no_scores():
    assert score(JEM(nn.Linear(2, 3)), torch.zeros(0, 2), "entropy").shape == (0,)


# -- features of any network, and scores of a linear head -----------------------------------------


class Registered(nn.Module):
    """A network as libraries write it: `features` is a part, and an unused head comes before."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 16), nn.ReLU())
        self.aux = nn.Linear(16, 5)
        self.classifier = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.classifier(self.features(x))


@pytest.fixture
def registered():
    torch.manual_seed(0)
    return JEM(Registered()).eval()


def test_features_of_any_network_are_what_goes_into_its_last_linear_layer(registered):
    x, network = torch.randn(30, 2), registered.network
    with torch.no_grad():
        z = network.classifier[:2](network.features(x))
    assert torch.equal(features_of(registered, x), z)
    bank = F.normalize(z, dim=1)
    expected = -torch.cdist(bank[:5], bank).sort(dim=1).values[:, 2]
    found = score(registered, x[:5], "knn", (x, None), k=3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not network.classifier[2]._forward_pre_hooks


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v3_small", "vit_b_16"])
def test_networks_of_torchvision_have_features(name):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        network = models.get_model(name, num_classes=7)
    layer = last_linear(JEM(network))
    assert layer.out_features == 7


def test_scores_of_a_linear_head_are_those_of_pytorch_ood(registered):
    theirs = pytest.importorskip("pytorch_ood.detector")
    x, far = torch.randn(200, 2), 4 * torch.randn(50, 2)
    z, other = (features_of(registered, inputs).detach() for inputs in (x, far))
    head = registered.network.classifier[2]
    vim = theirs.ViM(None, 4, head.weight, head.bias).fit_features(z, torch.zeros(200))
    react = theirs.ReAct(None, head, threshold=float(z.flatten().quantile(0.9)))
    scale = theirs.SCALE(None, head, percentile=0.85)
    scale.head = lambda maps: head(maps.flatten(1))
    expected = {"vim": vim.predict_features(other), "react": react.predict_feature_maps(other)}
    expected["scale"] = scale.predict_feature_maps(other[:, :, None, None])
    for name, value in expected.items():
        found = score(registered, far, name, (x, None))
        torch.testing.assert_close(found, -value.detach(), atol=5e-3, rtol=1e-3)


def test_odin_is_that_of_pytorch_ood(registered):
    theirs = pytest.importorskip("pytorch_ood.detector")
    x = torch.randn(40, 2, dtype=torch.float64)
    model = JEM(registered.network.double())
    expected = theirs.ODIN(model.network.eval(), eps=0.05, temperature=20.0).predict(x)
    found = score(model, x, "odin", noise=0.05, temperature=20.0)
    torch.testing.assert_close((found / 20).exp(), -expected.detach())
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", HEAD_SCORES)
def test_scores_of_a_linear_head_refuse_another(name, islands, reference):
    factored = JEM(mlp((2,), 3, width=8, depth=1, head="factored"))
    x = reference[0].float()
    with pytest.raises(InputError, match="last layer is linear"):
        score(factored, x, name, (x, None))
