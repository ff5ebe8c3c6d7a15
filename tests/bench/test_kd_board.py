"""The measures of `bench/peers/kd_board.py` tell a right loss from the wrong ones they are for."""

import pytest
import torch

from bench.peers.kd import ARMS, FORMULA, OURS
from bench.peers.kd_board import TAIL_MASS, K, differentiate, judge, make_case


@pytest.fixture(scope="module")
def board():
    return {n: judge(arm) for n, arm in ARMS.items() if arm.origin in (OURS, FORMULA)}


def test_ours_is_right_and_no_formula_over_stored_top_k_is(board):
    assert board[OURS].is_right
    assert {name for name, verdict in board.items() if verdict.is_right} == {OURS}


def test_each_wrong_loss_is_wrong_in_its_own_way(board):
    assert board["naive"].fixed_point_loss < -1, "no divergence: it goes negative"
    for name in ("distillkit", "distillkit tail", "axolotl"):
        assert board[name].fixed_point_loss > 1, name
        assert board[name].fixed_point_gradient > 0.05, name
    fused = board["axolotl fused"]
    assert fused.finite_difference_ratio == pytest.approx(4.0, rel=1e-2), "T^2 is printed only"
    server = board["trl server"]
    assert server.fixed_point_gradient < 1e-6
    assert server.micro_batch_error > 0.1, "a mean of each micro-batch's own tokens"


def test_the_case_has_the_tail_it_says_and_masses_that_sum_to_one():
    case = make_case(teacher_seed=0, alpha=0.0)
    top = case.logp.exp().sum(dim=1)
    assert 1 - top == pytest.approx(torch.full_like(top, TAIL_MASS), abs=1e-4)
    is_inside = (case.ids == case.targets[:, None]).any(dim=1)
    whole = top + torch.where(is_inside, 0.0, case.y_logp.exp()) + case.tail_logp.exp()
    assert whole == pytest.approx(torch.ones_like(whole), abs=1e-5)
    assert case.ids.shape == (len(case.targets), K)


def test_a_hard_term_is_the_same_in_every_arm_that_has_one():
    case = make_case(teacher_seed=1, alpha=1.0)
    expected, gradient = differentiate(ARMS[OURS], case, len(case.targets))
    for name in ("naive", "distillkit", "axolotl", "axolotl fused"):
        loss, found = differentiate(ARMS[name], case, len(case.targets))
        assert loss == pytest.approx(expected, rel=1e-5), name
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
