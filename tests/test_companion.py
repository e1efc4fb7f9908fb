"""A companion: the classifier's predictions to the bit, and a density of its own beside it."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

import jem
from jem import networks
from jem.errors import InputError
from jem.networks import mlp
from jem.sampling import UniformBase
from jem.sampling.base_distributions import SamplerSettings
from jem.sampling.langevin import LangevinStep

TINY = replace(
    jem.RECIPES["companion"], epochs=2, batch_size=16, num_chains=12, buffer_size=24, num_steps=2,
    sample_steps=3, checkpoint_every=2,
)  # fmt: skip
SHAPE, K = (3, 16, 16), 3


class Wrapped(nn.Module):
    """A classifier that returns its logits inside something."""

    def __init__(self, wrap):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(768, K))
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.body(x))


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def resnet():
    """Batch normalisation whose running statistics are those of some data."""
    network = seeded(lambda: torchvision.models.resnet18(num_classes=K))
    network(examples(24)[0])
    return network


def examples(count=32):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % K
    x = torch.rand(count, *SHAPE, generator=generator) * 0.4
    return x + 0.3 * labels[:, None, None, None], labels


def linear():
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, K)))


def beside(classifier, **settings):
    return seeded(lambda: jem.companion(classifier, input_shape=SHAPE, num_classes=K, **settings))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier with batch normalisation, and its companion after some updates."""
    classifier, folder = resnet(), tmp_path_factory.mktemp("run")
    before = copy.deepcopy(classifier.state_dict())
    model = jem.JEM(beside(classifier), domain=(0.0, 1.0))
    trainer = jem.Trainer(model, TINY, run_dir=folder / "run", device="cpu")
    trainer.fit(examples(), examples(9))
    return SimpleNamespace(
        classifier=classifier, before=before, model=model, trainer=trainer, folder=folder / "run"
    )


def test_predictions_are_those_of_the_classifier_to_the_bit(trained):
    x = torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = copy.deepcopy(trained.classifier).eval()(x).softmax(dim=1)
    assert trained.model.predict_proba(x).equal(expected)


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("level", [0.0, -7.3, 123.4])
def test_any_density_beside_any_logits_leaves_the_softmax(scale, level):
    h = scale * torch.randn(2000, 10, generator=torch.Generator().manual_seed(0))
    g = level + torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    network = jem.companion(
        lambda x: h[: len(x)], input_shape=(4,), num_classes=10, energy_network=mlp((4,), 1)
    )
    network.energy_network = Given(g)
    model = jem.JEM(network)
    with torch.no_grad():
        model.network.classifier._function = lambda x: h
        logits = model.logits(torch.zeros(2000, 4))
    torch.testing.assert_close(logits.logsumexp(dim=1), g[:, 0].double(), rtol=0, atol=1e-9)
    shifted = (logits - logits.amax(dim=1, keepdim=True)).float()
    assert shifted.softmax(dim=1).equal(h.softmax(dim=1))


class Given(nn.Module):
    """A network that returns what it was given."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value[: len(x)]


def test_training_leaves_the_classifier_as_it_was(trained):
    held = trained.model.network.classifier.module
    for module in (trained.classifier, held):
        state = module.state_dict()
        assert all(state[name].equal(value) for name, value in trained.before.items())
        assert all(p.grad is None for p in module.parameters())
    assert all(m.training for m in trained.classifier.modules())
    assert all(p.requires_grad for p in trained.classifier.parameters())
    trained.model.train()
    assert not any(m.training for m in held.modules())
    trained.model.eval()


def test_training_never_runs_the_classifier():
    calls = []

    def classifier(x):
        calls.append(len(x))
        return torch.zeros(len(x), K)

    model, asked = jem.JEM(beside(classifier), domain=(0.0, 1.0)), []
    jem.Trainer(model, replace(TINY, epochs=3), device="cpu").fit(
        examples(), examples(6), on_epoch=lambda metrics: asked.append(len(calls))
    )
    assert asked[0] == asked[1] == asked[2] == len(calls)  # a look before the first, no more


def test_energies_are_those_of_the_energy_network_and_of_the_logits(trained):
    x, y = examples(6)
    model = trained.model
    with torch.no_grad():
        g = model.network.energy_network(x).logsumexp(dim=1)
        assert model.energy(x).equal(-g)
        assert model.log_density(x).equal(g)
        torch.testing.assert_close(model.logits(x).logsumexp(dim=1).float(), g)
        joint = g.double() + model.predict_proba(x).double().log()[torch.arange(6), y]
        torch.testing.assert_close(model.energy(x, y), -joint, rtol=1e-5, atol=1e-5)


def test_the_class_has_a_gradient_through_a_module(trained):
    x, y = examples(6)
    x.requires_grad_()
    (joint,) = torch.autograd.grad(trained.model.energy(x, y).sum(), x)
    (marginal,) = torch.autograd.grad(trained.model.energy(x).sum(), x)
    h = copy.deepcopy(trained.classifier).eval()
    loss = nn.functional.cross_entropy(h(x), y, reduction="sum")
    (expected,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(joint - marginal, expected, rtol=1e-3, atol=1e-6)


def test_checkpoints_hold_the_energy_network_alone_and_the_model_file_all(trained):
    newest = sorted((trained.folder / "checkpoints").iterdir())[-1]
    size = sum(v.numel() for v in trained.before.values() if v.is_floating_point())
    assert newest.stat().st_size < 4 * size / 2
    path = trained.folder / "model.pt"
    detector = jem.OODDetector(trained.model).fit(examples()[0], acceptance_rate=0.9)
    jem.save(trained.model, path, detector=detector)
    x, _ = examples(7)
    expected = trained.model.predict_proba(x)
    for given in (torchvision.models.resnet18(num_classes=K), beside(resnet())):
        again = jem.load(path, network=given)
        assert again.predict_proba(x).equal(expected)
        assert again.energy(x).equal(trained.model.energy(x))
    with pytest.raises(InputError, match="network of your own; pass it"):
        jem.load(path)


def test_a_classifier_with_a_spec_is_built_from_the_file_alone(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "def make(shape, k): return nn.Sequential(nn.Flatten(), nn.Linear(768, k))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    classifier = linear()
    classifier.spec = "own_net:make"
    model = jem.JEM(beside(classifier), input_shape=SHAPE, classes="abc")
    jem.save(model, tmp_path / "model.pt")
    x, _ = examples(5)
    assert jem.load(tmp_path / "model.pt").predict_proba(x).equal(model.predict_proba(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda h: (h, h + 1),
        lambda h: {"logits": h, "loss": None},
        lambda h: {"out": h},
        lambda h: SimpleNamespace(logits=h),
    ],
)
def test_logits_may_be_inside_a_tuple_a_dict_or_an_object(wrap):
    classifier = seeded(lambda: Wrapped(wrap))
    x, _ = examples(4)
    assert jem.JEM(beside(classifier)).predict_proba(x).equal(classifier.body(x).softmax(dim=1))


def test_a_function_without_gradients_is_a_classifier_too():
    h = linear()
    model = jem.JEM(beside(lambda x: h(x).detach().numpy()), domain=(0.0, 1.0))
    jem.Trainer(model, replace(TINY, epochs=1), device="cpu").fit(examples(), examples(6))
    x, _ = examples(6)
    assert model.predict_proba(x).equal(h(x).softmax(dim=1))
    with pytest.raises(InputError, match="with gradients"):
        jem.counterfactual(model, x, max_energy=0.0)


def test_samples_of_a_class_are_drawn_from_the_energy_network():
    """So they need no gradient of the classifier, and are as those of that network alone."""
    torch.manual_seed(0)
    energy_network = mlp(SHAPE, K, width=8, depth=1)
    both = beside(lambda x: torch.zeros(len(x), K), energy_network=energy_network)
    model, alone = jem.JEM(both, domain=(0.0, 1.0)), jem.JEM(energy_network, domain=(0.0, 1.0))
    jem.Trainer(model, replace(TINY, epochs=1), device="cpu").fit(examples(), examples(6))
    alone.sampler, alone.classes = model.sampler, model.classes
    labels = torch.arange(20) % K
    for guidance in (1.0, 2.0):
        settings = {"guidance": guidance, "num_steps": model.sampler.num_steps // 2}
        drawn = jem.sample(model, labels, **settings)
        assert drawn.equal(jem.sample(alone, labels, **settings))
        assert not drawn.equal(jem.sample(model, (labels + 1) % K, **settings))


@pytest.mark.parametrize("build", [jem.companion, networks.towers])
def test_the_classifier_chooses_among_the_chains_of_a_sample(build):
    """It knows bright and dark; the density, which is untrained, does not."""

    class Bright(nn.Module):
        def forward(self, x):
            mean = 100 * (x.mean(dim=(1, 2, 3)) - 0.5)
            return torch.stack([mean, -mean], dim=1)

    network = build(Bright(), input_shape=SHAPE, num_classes=2)
    model = jem.JEM(network, domain=(0.0, 1.0), classes=("bright", "dark"))
    step = LangevinStep(step_size=0.0, noise_std=0.01)
    init = UniformBase(0.0, 1.0, SHAPE)
    model.sampler = SamplerSettings(init, 4, step, torch.tensor([0.5, 0.5]))
    model.input_shape = SHAPE
    labels = torch.arange(64) % 2
    few, all_steps = (jem.sample(model, labels, num_steps=n) for n in (2, 4))
    right = [share_right(model, x, labels) for x in (few, all_steps)]
    assert right[0] < 0.7  # half of the steps, and no choice: chance
    assert right[1] > 0.85  # the best of four: 15/16 in expectation
    assert jem.sample(model, labels[:7]).equal(all_steps[:7])


def share_right(model, x, labels):
    return float((model.predict_proba(x).argmax(dim=1) == labels).float().mean())


def test_a_density_without_classes_draws_a_class_by_the_gradient_of_the_classifier():
    h, one = linear(), seeded(lambda: mlp(SHAPE, 1, width=8, depth=1))
    model = jem.JEM(beside(h, energy_network=one), domain=(0.0, 1.0))
    jem.Trainer(model, replace(TINY, epochs=1), device="cpu").fit(examples(), examples(6))
    asked = jem.sample(model, [0, 0, 1, 1])
    assert not asked.equal(jem.sample(model, [1, 1, 0, 0]))
    without = jem.JEM(beside(h.forward, energy_network=one), domain=(0.0, 1.0))
    without.sampler, without.classes = model.sampler, model.classes
    with pytest.raises(InputError, match="`energy_network` must have an output for each class"):
        jem.sample(without, [0, 1])
    with pytest.raises(InputError, match=r"`energy_network` must have 3 outputs.* or one, got 2"):
        beside(h, energy_network=mlp(SHAPE, 2, width=8, depth=1))


def test_scores_of_features_are_those_of_the_classifier():
    x, y = examples(48)
    h = linear().append(nn.SiLU()).append(nn.Linear(K, K))
    model, alone = jem.JEM(beside(h)), jem.JEM(h)
    for name in ("knn", "mahalanobis", "vim"):
        scores = [jem.OODDetector(each, name, (x, y)).score(x[:9]) for each in (model, alone)]
        torch.testing.assert_close(*scores)
    model = jem.JEM(beside(lambda x: h(x).detach()))
    with pytest.raises(InputError, match="a classifier that is a module"):
        jem.OODDetector(model, "knn", (x, y))


def test_counterfactuals_and_onnx_files_work_with_a_module(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    x, _ = examples(4)
    found = jem.counterfactual(trained.model, x, max_energy=100.0)
    said = trained.model.predict_proba(found.x).argmax(dim=1)
    assert (said != trained.model.predict_proba(x).argmax(dim=1))[found.success].all()
    detector = jem.OODDetector(trained.model).fit(examples()[0], acceptance_rate=0.9)
    jem.export_onnx(trained.model, tmp_path / "model.onnx", detector=detector)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    logits, energy, flagged = session.run(["logits", "energy", "is_ood"], {"inputs": x.numpy()})
    expected = trained.model.predict_proba(x)
    torch.testing.assert_close(
        torch.from_numpy(logits).softmax(dim=1).float(), expected, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        torch.from_numpy(energy).float(), trained.model.energy(x).detach(), rtol=1e-4, atol=1e-4
    )
    assert (torch.from_numpy(flagged) == detector.is_ood(x)).all()


def test_large_images_are_pooled_before_they_are_scored():
    h = seeded(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, K)))
    network = jem.companion(h, input_shape=(3, 97, 130), num_classes=K)
    pooled, cnn = network.energy_network
    x = torch.rand(2, 3, 97, 130)
    assert pooled(x).shape == (2, *cnn.spec["shape"])
    assert max(cnn.spec["shape"][1:]) <= 32
    moved = x.clone()
    moved[..., -1, -1] += 1  # the last pixel counts too
    assert not torch.equal(network.energy_network(moved), network.energy_network(x))


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        (lambda x: torch.zeros(len(x), 2), r"logits of shape \(B, 3\)"),
        (lambda x: torch.full((len(x), 3), 1 / 3), "ends in a softmax: leave"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, K), nn.Sigmoid()), "ends in a sigmoid: leave"),
        (lambda x: object(), "must return logits, or a tuple"),
    ],
)
def test_what_is_no_classifier_is_refused(classifier, message):
    with pytest.raises(InputError, match=message):
        beside(classifier)


def test_the_recipe_asks_for_a_companion():
    with pytest.raises(InputError, match="companion"):
        jem.Trainer(jem.JEM(linear()), "companion").fit(examples())
    with pytest.raises(InputError, match="classifier that you have trained"):
        jem.JEMClassifier("companion").fit(*(t.numpy() for t in examples()))


def test_what_cannot_change_is_not_watched():
    model = jem.JEM(beside(linear()), domain=(0.0, 1.0))
    recipe = replace(TINY, accuracy_margin=0.01)
    with pytest.raises(InputError, match="classes that training changes"):
        jem.Trainer(model, recipe).fit(examples(), examples(6))
