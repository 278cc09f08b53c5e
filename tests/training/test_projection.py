import numpy as np
import pytest
import torch

from em_interp.training.projection import GROUPS, Projection, relative_error

SHAPE, DIMENSION = (96, 160), 256


def errors(x, y, count=400, dimension=DIMENSION):
    """Errors of the inner product of x and y over projections of many names, relative to their norms."""
    made = [Projection(f"layers.{i}.q_proj", tuple(x.shape), dimension) for i in range(count)]
    inner = np.array([float(projection(x) @ projection(y)) for projection in made])
    return (inner - float((x * y).sum())) / float(x.norm() * y.norm())


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_inner_products_are_right_on_average_with_the_stated_error_which_rank_one_reaches():
    one = gaussian(0, SHAPE[0], 1).sign() @ gaussian(1, 1, SHAPE[1]).sign()
    found = errors(one, one)
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))
    assert 0.8 * relative_error(DIMENSION) < np.sqrt(np.mean(found**2)) < 1.08 * relative_error(DIMENSION)


@pytest.mark.parametrize("cosine", [0.0, 0.7])
def test_of_high_rank_the_error_is_that_of_independent_signs(cosine):
    x = gaussian(0, *SHAPE)
    y = cosine * x + (1 - cosine**2) ** 0.5 * gaussian(1, *SHAPE)
    found = errors(x, y)
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))
    assert np.sqrt(np.mean(found**2)) == pytest.approx(np.sqrt((1 + cosine**2) / DIMENSION), rel=0.2)
    assert np.sqrt(np.mean(found**2)) < relative_error(DIMENSION)


def test_where_one_block_has_all_of_the_norm_the_error_grows_by_the_root_of_their_number_and_no_more():
    x = torch.zeros(SHAPE)
    x[:, :5] = gaussian(0, SHAPE[0], 5)  # the longer side is cut: 5 columns a block
    found = np.sqrt(np.mean(errors(x, x) ** 2))
    assert relative_error(DIMENSION) < found < np.sqrt(GROUPS) * relative_error(DIMENSION)


def test_the_numbers_of_a_block_belong_to_its_rows_alone():
    projection, x = Projection("layers.0.up_proj", SHAPE, DIMENSION), gaussian(0, *SHAPE)
    changed = x.clone()
    changed[:, 10:15] += 1  # the third block of five columns
    moved = (projection(changed) - projection(x)).reshape(GROUPS, -1).abs().sum(dim=1) > 0
    assert moved.nonzero().flatten().tolist() == [2]


def test_it_is_linear_and_a_matrix_no_larger_than_it_is_kept_as_it_is():
    projection, x, y = Projection("layers.0.up_proj", SHAPE, DIMENSION), gaussian(0, *SHAPE), gaussian(1, *SHAPE)
    torch.testing.assert_close(projection(2 * x - y), 2 * projection(x) - projection(y), rtol=0, atol=1e-5)
    small = gaussian(2, 16, 16)
    kept = Projection("layers.0.k_proj", (16, 16), DIMENSION)
    assert kept.exact and torch.equal(kept(small), small.double().flatten())
    assert not Projection("layers.0.k_proj", (16, 17), DIMENSION).exact


def test_rows_that_do_not_divide_into_blocks_lose_nothing():
    x = gaussian(0, 101, 7)
    found = [float(Projection(f"layers.{i}.o_proj", (101, 7), 128)(x).norm() ** 2) for i in range(300)]
    assert np.mean(found) == pytest.approx(float(x.norm() ** 2), rel=4 * np.std(found) / np.mean(found) / 300**0.5)


def test_the_signs_depend_on_the_name_and_the_shape_alone():
    x = gaussian(0, *SHAPE)
    first, again = (Projection("layers.0.up_proj", SHAPE, DIMENSION)(x) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, Projection("layers.1.up_proj", SHAPE, DIMENSION)(x))
