"""Networks x -> logits: architectures, heads, and how the network of a run is built."""

from jem.networks.architectures import NETWORKS as NETWORKS
from jem.networks.architectures import Network as Network
from jem.networks.architectures import Towers as Towers
from jem.networks.architectures import is_embedding as is_embedding
from jem.networks.architectures import mlp as mlp
from jem.networks.architectures import network_for as network_for
from jem.networks.architectures import pooled_cnn as pooled_cnn
from jem.networks.architectures import small_cnn as small_cnn
from jem.networks.architectures import towers as towers
from jem.networks.architectures import usual_head as usual_head
from jem.networks.architectures import wide_resnet as wide_resnet
from jem.networks.build import NetworkFactory as NetworkFactory
from jem.networks.build import make_network as make_network
from jem.networks.build import network_from_reference as network_from_reference
from jem.networks.build import network_from_spec as network_from_spec
from jem.networks.build import network_from_text as network_from_text
from jem.networks.companion import Classifier as Classifier
from jem.networks.companion import Companion as Companion
from jem.networks.heads import HEADS as HEADS
from jem.networks.heads import Factored as Factored
from jem.networks.heads import FactoredHead as FactoredHead
from jem.networks.heads import JointHead as JointHead
from jem.networks.heads import factored as factored
