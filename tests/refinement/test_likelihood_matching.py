import math

import pytest
import torch

from loraport.refinement.likelihood_matching import ChunkAgreement, binary_divergence

LIKELIHOODS = torch.tensor([-1e-9, -0.01, -0.7, -5.0, -60.0])


@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
def test_nothing_and_no_gradient_where_the_student_is_the_teacher(temperature: float):
    student = LIKELIHOODS.clone().requires_grad_(True)
    loss = binary_divergence(LIKELIHOODS, student, temperature)
    assert float(loss.detach().abs().max()) < 1e-5
    loss.sum().backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-3


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_is_the_divergence_of_two_classes(temperature: float):
    teacher, student = torch.tensor([-0.2, -3.0]), torch.tensor([-1.5, -0.4])
    found = binary_divergence(teacher, student, temperature)
    for place in range(2):
        p, q = (math.exp(float(x[place]) / temperature) for x in (teacher, student))
        expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert float(found[place]) == pytest.approx(temperature * expected, rel=1e-3)


def test_a_high_temperature_matches_unlikely_chunks_too():
    teacher, student = torch.tensor([-20.0]), torch.tensor([-10.0])
    a, b = 20.0, 10.0
    limit = a * math.log(a / b) - a + b
    assert float(binary_divergence(teacher, student, 1e4)) == pytest.approx(limit, rel=0.01)
    assert float(binary_divergence(teacher, student, 1.0)) < 1e-4


def test_stays_finite_at_the_ends():
    sure, never = torch.tensor([0.0]), torch.tensor([-500.0], requires_grad=True)
    loss = binary_divergence(sure, never, 1.0)
    assert float(loss.detach()) == pytest.approx(500, rel=1e-3)
    loss.backward()
    assert never.grad is not None
    assert float(never.grad) == pytest.approx(-1, rel=1e-3)


def test_agreement_of_known_likelihoods():
    teacher = [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])]
    student = [torch.tensor([-2.0, -1.0]), torch.tensor([-7.0])]
    found = ChunkAgreement.of(teacher, student)
    assert found.gap == pytest.approx(2.0)
    assert found.cross_entropy == pytest.approx(10 / 3)
    assert found.chunks == 3
    assert found.divergence > 0
    assert ChunkAgreement.of(teacher, teacher)[:2] == (0.0, 0.0)
