import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spp_jax import batches, create_model, plan_buckets
from spp_jax.testing import count_compilations

RNG = np.random.default_rng(0)
IMAGES = [RNG.uniform(size=(h, w, 3)).astype(np.float32) for h, w in RNG.integers(12, 40, (17, 2)).tolist()]
LABELS = {"score": RNG.uniform(size=17).astype(np.float32), "votes": RNG.uniform(size=(17, 5))}


@pytest.mark.parametrize("either", [False, True])
def test_every_array_comes_once_with_its_labels_and_filler_rows_weigh_nothing(either):
    sizes = [image.shape[:2] for image in IMAGES]
    plan = plan_buckets(sizes, 3, pixels_per_step=6000, both_orientations=either)
    order, seen = RNG.permutation(17), []
    for images, labels, weights, places in batches(plan, IMAGES, labels=LABELS, order=order):
        assert len(images.values) in {bucket.batch_size for bucket in plan.buckets}
        np.testing.assert_array_equal(weights, places >= 0)
        assert not images.values[places < 0].any()
        assert not images.sizes[places < 0].any()
        for row, place in enumerate(places):
            if place < 0:
                assert not labels["votes"][row].any()
                continue
            seen.append(place)
            height, width = images.sizes[row]
            image = images.values[row, :height, :width]
            np.testing.assert_array_equal(image.swapaxes(0, 1) if images.turned else image, IMAGES[place])
            assert labels["score"][row] == LABELS["score"][place]
            np.testing.assert_array_equal(labels["votes"][row], LABELS["votes"][place])
    assert sorted(seen) == list(range(17))


def test_a_loop_of_ones_own_compiles_once_a_bucket_and_gives_what_each_image_gives_alone():
    model = create_model("compact", levels=(1, 2), rngs=nnx.Rngs(0))
    model.eval()
    plan = plan_buckets(
        [image.shape[:2] for image in IMAGES], 2, pixels_per_step=9000, both_orientations=True
    )
    graph, state = nnx.split(model)

    @jax.jit
    def step(state, images):
        return nnx.merge(graph, state)(images)[:, 0]

    found = np.zeros(17)
    with count_compilations() as count:
        for images, _, weights, places in batches(plan, IMAGES):
            logits = np.asarray(step(state, images))
            found[places[weights > 0]] = logits[weights > 0]
    assert count.compiled["step"] <= len(plan.buckets)
    for place in (0, 7):
        alone = model(jnp.asarray(IMAGES[place])[None])[0, 0]
        np.testing.assert_allclose(found[place], alone, atol=1e-4)


def test_labels_that_are_not_one_for_each_are_refused():
    with pytest.raises(ValueError, match=r"labels of shape \(3,\) are not one for each of 17 arrays"):
        next(batches(plan_buckets([(40, 40)], 1), IMAGES, labels=np.zeros(3)))
