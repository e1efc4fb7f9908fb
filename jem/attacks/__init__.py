"""Attacks: small changes of inputs that make a classifier name another class.

They work on any function from inputs to logits. Tutorial and limits: docs/method.md, "Attacks".
"""

from jem.attacks.gradient import apgd as apgd
from jem.attacks.gradient import n_fgsm as n_fgsm
from jem.attacks.gradient import pgd as pgd
from jem.attacks.random_search import square as square
