"""Networks x -> logits: architectures, heads, and how the network of a run is built."""

from jem.networks.architectures import (
    NETWORKS,
    Network,
    WideBlock,
    is_embedding,
    mlp,
    network_for,
    small_cnn,
    wide_resnet,
)
from jem.networks.build import (
    NetworkFactory,
    make_network,
    network_from_reference,
    network_from_spec,
    network_from_text,
    spec_of,
)
from jem.networks.companion import Classifier, Companion
from jem.networks.heads import HEADS, Factored, FactoredHead, Head, JointHead, factored

__all__ = [
    "HEADS",
    "NETWORKS",
    "Classifier",
    "Companion",
    "Factored",
    "FactoredHead",
    "Head",
    "JointHead",
    "Network",
    "NetworkFactory",
    "WideBlock",
    "factored",
    "is_embedding",
    "make_network",
    "mlp",
    "network_for",
    "network_from_reference",
    "network_from_spec",
    "network_from_text",
    "small_cnn",
    "spec_of",
    "wide_resnet",
]
