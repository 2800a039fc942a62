import pytest
from dataclasses import replace
from step_by_hand import EXPERTS, IDLE, judge_step, loads
from transformer_lab.balancer.sign_bias import SignBias
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.router.olmoe import OLMoE
MOE = MixtureOfExperts(OLMoE(2), Experts(EXPERTS, 6, bias=True), balance_loss=0.5, z_loss=0.1, balancer=SignBias(0.01))
TWO = (MOE, MOE)
MIXED = (replace(MOE, balancer=None), Dense(6), MOE)
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("scope", ["step", "piece", "sequence"])
def test_step(scope, pieces):
    judge_step(tuple(replace(f, balance_scope=scope) for f in TWO), pieces)
@pytest.mark.parametrize("pieces", [1, 3])
def test_mixed(pieces):
    judge_step(MIXED, pieces)
    print(loads(MIXED), loads(TWO))
