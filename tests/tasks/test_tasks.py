"""The task families against numbers worked out by hand."""

import pickle

import numpy as np
import pytest
from gymnasium import spaces
from numpy.testing import assert_allclose, assert_array_equal

from hipi_sb3.tasks.family import TaskFamily
from hipi_sb3.tasks.finite import DiscreteTasks, FiniteTasks
from hipi_sb3.tasks.functions import CallableTasks
from hipi_sb3.tasks.goals import GoalMargin, GoalReaching
from hipi_sb3.tasks.linear import LinearReward, TargetVelocity

# Functions at module level: families have to be picklable.


def next_observation(env, obs, action, next_obs, reward, info):
    return np.asarray(next_obs, dtype=np.float32)


def first_entry(env, obs, action, next_obs, reward, info):
    return np.asarray(next_obs)[0]


def go_right(features):
    return features[..., 0]


def go_up(features):
    return 10.0 * features[..., 1]


def stand_still(features):
    return -np.abs(features).sum(axis=-1)


def is_right(features):
    return features[..., 0] > 1


def is_up(features):
    return features[..., 1] > 1


def is_still(features):
    return np.zeros(features.shape[:-1], dtype=bool)


def negative_distance(features, tasks):
    return -np.abs(features - tasks).sum(axis=-1)


def is_close(features, tasks):
    return np.abs(features - tasks).sum(axis=-1) < 1


def keeps_the_last_axis(features, tasks):
    return -np.abs(features - tasks).sum(axis=-1, keepdims=True)


def same(features):
    return features


def sample_ones(rng, n):
    return np.ones((n, 2))


def sample_one_dimensional(rng, n):
    return np.ones(n)


def log_prior_of_ones(tasks):
    return np.where(np.all(tasks == 1, axis=-1), 0.0, -np.inf)


def features_of(family: TaskFamily, next_obs, **kwargs):
    arguments = {"env": None, "obs": None, "action": None, "reward": 0.0, "info": {}, **kwargs}
    return family.features(next_obs=np.asarray(next_obs, dtype=np.float32), **arguments)


def discrete(**kwargs) -> DiscreteTasks:
    return DiscreteTasks([go_right, go_up, stand_still], next_observation, feature_dim=2, **kwargs)


def callable_tasks(**kwargs) -> CallableTasks:
    arguments = {
        "task_space": spaces.Box(-2.0, 2.0, shape=(2,)),
        "feature_dim": 2,
        "features": next_observation,
        "reward": negative_distance,
    }
    return CallableTasks(**{**arguments, **kwargs})


def all_families() -> dict[str, TaskFamily]:
    goals = GoalReaching([-1, -1], [1, 1], radius=0.5)
    return {
        "GoalReaching": goals,
        "GoalReaching that goes on": GoalReaching([-1, -1], [1, 1], radius=0.5, terminate=False),
        "GoalMargin": GoalMargin([-1, -1], [1, 1], max_tolerance=0.5),
        "DiscreteTasks": discrete(
            terminated=[is_right, is_up, is_still], success=[is_right, is_up, is_still], prior=[0.5, 0.25, 0.25]
        ),
        "FiniteTasks": FiniteTasks(goals, [[0, 0], [1, 1], [0.5, -0.5]]),
        "LinearReward": LinearReward([-1, -1], [1, 1], next_observation),
        "TargetVelocity": TargetVelocity(0.0, 3.0),
        "CallableTasks": callable_tasks(terminated=is_close, success=is_close, achieved=same),
    }


FAMILIES = all_families()
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


# -- what all families have in common ---------------------------------------------------------------------------------


@each_family
def test_a_family_passes_its_own_check_and_survives_pickling(family):
    family.check()
    copy = pickle.loads(pickle.dumps(family))
    rng = np.random.default_rng(0)
    features, tasks = rng.normal(size=(5, family.feature_dim)).astype(np.float32), family.sample(rng, 5)
    assert_array_equal(copy.reward(features, tasks), family.reward(features, tasks))


@each_family
def test_leading_axes_broadcast_and_every_pair_equals_its_single_value(family):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(4, family.feature_dim)).astype(np.float32)
    tasks = family.sample(rng, 3)
    for method in (family.reward, family.terminated, family.success):
        pairs = method(features[:, None], tasks[None])  # (4, 1, feature_dim), (1, 3, task_dim) -> (4, 3)
        if pairs is None:
            continue
        singles = np.array([[method(feature, task) for task in tasks] for feature in features])
        assert pairs.shape == (4, 3)
        assert_array_equal(pairs, singles)
        assert_array_equal(method(features[:3], tasks), np.diagonal(singles[:3]))  # matching rows
        assert method(features[0], tasks).shape == (3,)
        assert method(features, tasks[0]).shape == (4,)


@each_family
def test_judging_a_step_says_what_the_three_methods_say(family):
    rng = np.random.default_rng(4)
    features, tasks = rng.normal(size=(40, family.feature_dim)).astype(np.float32), family.sample(rng, 40)
    for arguments in [(features[:, None], tasks), (features, tasks), *zip(features, tasks, strict=True)]:
        for judged, asked in zip(
            family.judge(*arguments),
            (family.reward(*arguments), family.terminated(*arguments), family.success(*arguments)),
            strict=True,
        ):
            assert (judged is None) == (asked is None)
            assert_array_equal(judged, asked)  # to the last bit
            assert np.asarray(judged).dtype.kind == np.asarray(asked).dtype.kind
    _, terminated, success = family.judge(features, tasks)
    assert success is None or not np.shares_memory(terminated, success)  # both are handed out


class HalfReward(TargetVelocity):
    def reward(self, features, tasks):
        return 0.5 * super().reward(features, tasks)


class HalfRewardOfHalf(HalfReward):
    """Overrides nothing."""


class NeverSucceeds:
    def success(self, features, tasks):
        return np.zeros(np.broadcast_shapes(features.shape[:-1], tasks.shape[:-1]), dtype=bool)


class MixedIn(NeverSucceeds, GoalReaching):
    pass


class ShortCut(HalfReward):
    def judge(self, features, tasks):
        return 7.0, False, None


def test_an_inherited_short_cut_does_not_overrule_an_overridden_method():
    features, task = np.array([1.0, 2.0], dtype=np.float32), np.array([0.5], dtype=np.float32)
    assert TargetVelocity(0, 3).judge(features, task)[0] == pytest.approx(-0.6)
    assert HalfReward(0, 3).judge(features, task)[0] == HalfRewardOfHalf(0, 3).judge(features, task)[0] == pytest.approx(-0.3)
    assert ShortCut(0, 3).judge(features, task)[0] == 7.0
    at = np.zeros(2, dtype=np.float32)
    reward, terminated, success = MixedIn([-1, -1], [1, 1], radius=0.5).judge(at, at)
    assert (reward, terminated, success) == (0.0, True, False)


@each_family
def test_samples_lie_in_the_task_space_and_have_a_finite_log_prior(family):
    tasks = family.sample(np.random.default_rng(2), 50)
    assert tasks.shape == (50, family.task_dim) and tasks.dtype == np.float32
    assert all(family.task_space.contains(task) for task in tasks)
    assert family.log_prior(tasks).shape == (50,)
    assert np.all(np.isfinite(family.log_prior(tasks)))
    assert family.log_prior(tasks[0]).shape == ()
    assert family.log_prior(tasks.reshape(5, 10, -1)).shape == (5, 10)


@each_family
def test_samples_are_reproducible_with_both_kinds_of_numpy_generator(family):
    for make in (np.random.default_rng, np.random.RandomState):
        assert_array_equal(family.sample(make(3), 8), family.sample(make(3), 8))


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState])
def test_a_finite_family_draws_the_same_tasks_one_by_one(make):
    family, rng = discrete(prior=[0.5, 0.125, 0.375]), make(5)
    one_by_one = np.concatenate([family.sample(rng, 1) for _ in range(50)])
    assert_array_equal(one_by_one, family.sample(make(5), 50))
    one_by_one[:] = 7  # and what a caller does to them changes no family
    assert family.tasks.max() == 1
    family.sample(rng, 1)[:] = 7
    assert family.tasks.max() == 1


@each_family
def test_only_goal_families_have_hindsight_tasks(family):
    features = np.zeros((2, family.feature_dim), dtype=np.float32)
    if family.reaches_goals:
        achieved = family.achieved(features)
        assert achieved.shape == (2, family.task_dim)
        if family.success(features, achieved) is not None:
            assert np.all(family.success(features, achieved))
    else:
        with pytest.raises(TypeError, match="not a goal family"):
            family.achieved(features)


def test_which_families_reach_goals():
    assert {name for name, family in FAMILIES.items() if family.reaches_goals} == {
        "GoalReaching",
        "GoalReaching that goes on",
        "GoalMargin",
        "CallableTasks",
    }


# -- goals ------------------------------------------------------------------------------------------------------------


def test_goal_reaching_rewards_zero_up_to_the_radius_and_minus_one_beyond():
    family = GoalReaching([-10, -10], [10, 10], radius=5.0)
    goal = np.array([0, 0], dtype=np.float32)
    at = np.array([[3, 4], [3, 4.001], [0, 5], [0, np.nextafter(np.float32(5), np.float32(6))], [-3, -4]], dtype=np.float32)
    assert_array_equal(family.reward(at, goal), [0, -1, 0, -1, 0])
    assert_array_equal(family.terminated(at, goal), [True, False, True, False, True])
    assert_array_equal(family.success(at, goal), [True, False, True, False, True])
    assert_array_equal(family.achieved(at), at)


def test_goal_reaching_without_terminate_never_ends_but_succeeds():
    family = GoalReaching([-1], [1], radius=0.5, terminate=False)
    at = np.array([[0.0], [0.9]], dtype=np.float32)
    goal = np.array([0.0], dtype=np.float32)
    assert_array_equal(family.terminated(at, goal), [False, False])
    assert_array_equal(family.success(at, goal), [True, False])
    assert_array_equal(family.reward(at, goal), [0, -1])


def test_goal_reaching_reads_the_position_it_was_told():
    observation = [7, 8, 9, 10]
    assert_array_equal(features_of(GoalReaching([0, 0], [1, 1], 0.1), observation), [7, 8])
    assert_array_equal(features_of(GoalReaching([0, 0], [1, 1], 0.1, position=[3, 1]), observation), [10, 8])
    assert_array_equal(features_of(GoalReaching([0] * 4, [1] * 4, 0.1, position=next_observation), observation), observation)
    with pytest.raises(ValueError, match="2 entries"):
        GoalReaching([0, 0], [1, 1], 0.1, position=[0, 1, 2])


def test_goal_reaching_has_a_uniform_prior_over_its_box():
    family = GoalReaching([0, -1], [4, 1], radius=0.1)
    assert_allclose(family.log_prior(np.array([[1, 0], [4, 1], [4.1, 0], [-0.1, 0]])), [-np.log(8)] * 2 + [-np.inf] * 2)
    samples = family.sample(np.random.default_rng(0), 4000)
    assert_allclose(samples.mean(axis=0), [2, 0], atol=0.1)
    assert_allclose(samples.var(axis=0), [16 / 12, 4 / 12], rtol=0.1)


@pytest.mark.parametrize("radius", [0.0, -1.0, np.nan])
def test_goal_reaching_refuses_a_radius_that_is_not_positive(radius):
    with pytest.raises(ValueError, match=r"radius must be (positive|a number, not NaN)"):
        GoalReaching([0], [1], radius=radius)


def test_goal_margin_judges_by_the_tolerance_in_the_task():
    family = GoalMargin([-10, -10], [10, 10], max_tolerance=8.0)
    at = np.array([3, 4], dtype=np.float32)  # at a distance of 5 from the goal
    tasks = np.array([[0, 0, 5], [0, 0, 4.999], [0, 0, 8], [0, 0, 0], [3, 4, 0]], dtype=np.float32)
    assert_array_equal(family.reward(at, tasks), [0, -1, 0, -1, 0])
    assert_array_equal(family.terminated(at, tasks), [True, False, True, False, True])
    assert_array_equal(family.success(at, tasks), [True, False, True, False, True])
    assert_array_equal(family.achieved(at), [3, 4, 4])
    assert_array_equal(family.achieved(np.stack([at, 2 * at])), [[3, 4, 4], [6, 8, 4]])
    assert family.task_dim == 3 and family.feature_dim == 2
    assert_allclose(family.log_prior(tasks), -np.log(20 * 20 * 8))
    assert family.log_prior(np.array([0, 0, 8.5])) == -np.inf
    going_on = GoalMargin([-10, -10], [10, 10], max_tolerance=8.0, terminate=False)
    assert not going_on.terminated(at, tasks).any() and going_on.success(at, tasks).any()
    with pytest.raises(ValueError, match="max_tolerance must be positive"):
        GoalMargin([0], [1], max_tolerance=0.0)


# -- finite sets ------------------------------------------------------------------------------------------------------


def test_discrete_tasks_use_the_function_that_the_one_hot_vector_names():
    family = discrete(terminated=[is_right, is_up, is_still], success=[is_right, is_up, is_still])
    features = np.array([[2, 3], [-1, 0.5]], dtype=np.float32)
    expected = [[2, 30, -5], [-1, 5, -1.5]]
    assert_allclose(family.reward(features[:, None], np.eye(3)), expected)
    assert_array_equal(family.terminated(features[:, None], np.eye(3)), [[True, True, False], [False, False, False]])
    assert_array_equal(family.success(features[:, None], np.eye(3)), [[True, True, False], [False, False, False]])
    for index in range(3):
        assert family.reward(features[0], np.eye(3)[index]) == expected[0][index]
    assert_array_equal(family.tasks, np.eye(3))


def test_discrete_tasks_without_terminations_never_end_and_have_no_success():
    family = discrete()
    features = np.full((4, 2), 5, dtype=np.float32)
    assert_array_equal(family.terminated(features[:, None], np.eye(3)), np.zeros((4, 3), dtype=bool))
    assert family.success(features, np.eye(3)[0]) is None


def test_finite_priors_sum_to_one_and_are_sampled_in_proportion():
    family = discrete(prior=[0.5, 0.2, 0.3])
    assert_allclose(np.exp(family.log_prior(np.eye(3))), [0.5, 0.2, 0.3])
    counts = family.sample(np.random.default_rng(0), 10_000).sum(axis=0)
    # Four standard deviations of a binomial of 10 000 draws are at most 200.
    assert_allclose(counts, [5000, 2000, 3000], atol=200)
    assert_allclose(np.exp(discrete().log_prior(np.eye(3))), [1 / 3] * 3)


@pytest.mark.parametrize("prior", [[0.5, 0.5], [0.5, 0.5, 0.5], [1.0, 0.0, 0.0], [1.5, -0.25, -0.25]])
def test_a_prior_that_is_no_positive_distribution_is_refused(prior):
    with pytest.raises(ValueError, match="3 positive numbers that sum to 1"):
        discrete(prior=prior)


def test_discrete_tasks_refuse_lists_of_different_length():
    with pytest.raises(ValueError, match="3 rewards but 2 functions in terminated"):
        discrete(terminated=[is_right, is_up])
    with pytest.raises(ValueError, match="3 rewards but 1 functions in success"):
        discrete(success=[is_right])


def test_finite_tasks_equal_the_inner_family_at_their_parameters():
    goals = [[0.0, 0.0], [1.0, 1.0], [0.5, -0.5]]
    rng = np.random.default_rng(0)
    for inner in (GoalReaching([-1, -1], [1, 1], radius=0.7), LinearReward([-1, -1], [1, 1], next_observation)):
        family = FiniteTasks(inner, goals, prior=[0.6, 0.3, 0.1])
        features = rng.normal(size=(20, 1, 2)).astype(np.float32)
        parameters = np.array(goals, dtype=np.float32)
        assert_array_equal(family.reward(features, np.eye(3)), inner.reward(features, parameters))
        assert_array_equal(family.terminated(features, np.eye(3)), inner.terminated(features, parameters))
        success = inner.success(features, parameters)
        if success is None:
            assert family.success(features, np.eye(3)) is None
        else:
            assert_array_equal(family.success(features, np.eye(3)), success)
        assert_array_equal(features_of(family, [3, 4]), features_of(inner, [3, 4]))
        assert_allclose(np.exp(family.log_prior(np.eye(3))), [0.6, 0.3, 0.1])
        assert not family.reaches_goals


def test_finite_tasks_refuse_parameters_outside_the_inner_space():
    with pytest.raises(ValueError, match=r"task \[2\.0, 0\.0\] is outside the task space"):
        FiniteTasks(GoalReaching([-1, -1], [1, 1], radius=0.5), [[0, 0], [2, 0]])


# -- weights and set points -------------------------------------------------------------------------------------------


def test_linear_reward_is_the_dot_product():
    family = LinearReward([-1, -1, -1], [1, 1, 1], next_observation)
    features = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
    tasks = np.array([[1, 0, 0], [0.5, -0.5, 1]], dtype=np.float32)
    assert_allclose(family.reward(features[:, None], tasks), [[1, 2.5], [4, 5.5]])
    assert_array_equal(features_of(family, [1, 2, 3]), [1, 2, 3])
    assert not family.terminated(features, tasks).any()
    assert family.success(features, tasks) is None
    assert_allclose(family.log_prior(tasks), -np.log(8))


def test_target_velocity_pays_for_the_error_and_for_the_action():
    family = TargetVelocity(0.0, 3.0, action_cost=0.1, tolerance=0.25)
    action = np.array([0.5, -1.0], dtype=np.float32)
    features = features_of(family, [0], action=action, info={"x_velocity": 1.5})
    assert_allclose(features, [1.5, 1.25])
    assert features.dtype == np.float32
    tasks = np.array([[0.0], [1.25], [1.24], [1.5], [1.75], [3.0]], dtype=np.float32)
    assert_allclose(family.reward(features, tasks), [-1.625, -0.375, -0.385, -0.125, -0.375, -1.625], rtol=1e-6)
    assert_array_equal(family.success(features, tasks), [False, True, False, True, True, False])
    assert_allclose(family.log_prior(np.array([[0.0], [3.0], [3.1], [-0.1]])), [-np.log(3)] * 2 + [-np.inf] * 2)


def test_target_velocity_reads_another_key_or_a_function_and_names_a_missing_key():
    action = np.zeros(1)
    assert features_of(TargetVelocity(0, 1, velocity="speed"), [0], action=action, info={"speed": 0.5})[0] == 0.5
    assert features_of(TargetVelocity(0, 1, velocity=first_entry), [0.25], action=action)[0] == 0.25
    with pytest.raises(KeyError, match=r"info\['x_velocity'\], but the environment's info has \['y_velocity'\]"):
        features_of(TargetVelocity(0, 1), [0], action=action, info={"y_velocity": 1.0})


# -- functions --------------------------------------------------------------------------------------------------------


def test_callable_tasks_call_the_functions_they_were_given():
    family = callable_tasks(
        terminated=is_close, success=is_close, achieved=same, sample=sample_ones, log_prior=log_prior_of_ones
    )
    features, tasks = np.array([[0, 0], [1, 1.5]], dtype=np.float32), np.array([1, 1], dtype=np.float32)
    assert_allclose(family.reward(features, tasks), [-2, -0.5])
    assert_array_equal(family.terminated(features, tasks), [False, True])
    assert_array_equal(family.success(features, tasks), [False, True])
    assert_array_equal(family.achieved(features), features)
    assert_array_equal(family.sample(np.random.default_rng(0), 3), np.ones((3, 2)))
    assert family.sample(np.random.default_rng(0), 3).dtype == np.float32
    assert_array_equal(family.log_prior(np.array([[1, 1], [0, 1]])), [0, -np.inf])
    assert_array_equal(features_of(family, [3, 4]), [3, 4])


def test_callable_tasks_without_optional_functions_use_the_defaults():
    family = callable_tasks()
    features, tasks = np.zeros((3, 2), dtype=np.float32), np.zeros(2, dtype=np.float32)
    assert_array_equal(family.terminated(features, tasks), [False] * 3)
    assert family.success(features, tasks) is None
    assert not family.reaches_goals
    assert_allclose(family.log_prior(tasks), -np.log(16))


def test_callable_tasks_need_sample_and_log_prior_together():
    with pytest.raises(ValueError, match="both sample and log_prior"):
        callable_tasks(sample=sample_ones)
    with pytest.raises(ValueError, match="both sample and log_prior"):
        callable_tasks(log_prior=log_prior_of_ones)


def test_callable_tasks_can_be_finite():
    family = callable_tasks(tasks=np.array([[0, 0], [1, 1]]))
    assert_allclose(np.exp(family.log_prior(family.tasks)), [0.5, 0.5])
    assert {tuple(task) for task in family.sample(np.random.default_rng(0), 50)} == {(0, 0), (1, 1)}


# -- errors -----------------------------------------------------------------------------------------------------------


def test_a_lambda_is_refused_with_the_reason_and_the_remedy():
    family = callable_tasks(reward=lambda features, tasks: 0.0)
    with pytest.raises(TypeError, match=r"CallableTasks cannot be pickled.*SubprocVecEnv.*module level"):
        family.check()


def test_a_reward_that_keeps_the_last_axis_is_refused_and_both_shapes_are_named():
    with pytest.raises(ValueError, match=r"CallableTasks\.reward.*\(2, 1, 2\).*\(3, 2\).*give \(2, 3\), not \(2, 3, 1\)"):
        callable_tasks(reward=keeps_the_last_axis).check()


def test_samples_of_the_wrong_shape_are_refused_and_both_shapes_are_named():
    family = callable_tasks(sample=sample_one_dimensional, log_prior=log_prior_of_ones)
    with pytest.raises(ValueError, match=r"must return shape \(3, 2\), not \(3,\)"):
        family.check()


def test_a_task_of_the_wrong_shape_or_outside_the_space_is_refused():
    family = GoalReaching([-1, -1], [1, 1], radius=0.5)
    with pytest.raises(ValueError, match=r"a task has shape \(2,\), but .* has shape \(3,\)"):
        family.check_task([0, 0, 0])
    with pytest.raises(
        ValueError, match=r"task \[0\.0, 1\.5\] is outside the task space, low \[-1\.0, -1\.0\], high \[1\.0, 1\.0\]"
    ):
        family.check_task([0, 1.5])
    with pytest.raises(ValueError, match="outside the task space"):
        family.check_task([0, np.nan])
    assert_array_equal(family.check_task([1, -1]), np.array([1, -1], dtype=np.float32))
    assert family.check_task([1, -1]).dtype == np.float32


def test_a_task_that_is_none_of_a_finite_family_is_refused():
    with pytest.raises(ValueError, match=r"none of the family's 3 tasks\. Pass one of them, such as \[1\.0, 0\.0, 0\.0\]"):
        discrete().check_task([0.5, 0.5, 0.0])
    assert_array_equal(discrete().check_task([0, 1, 0]), [0, 1, 0])


def test_bounds_that_are_empty_or_differ_in_length_are_refused():
    with pytest.raises(ValueError, match="low < high"):
        GoalReaching([0, 0], [1, 0], radius=0.5)
    with pytest.raises(ValueError, match="one length"):
        GoalReaching([0, 0], [1], radius=0.5)


def test_a_task_space_that_is_no_vector_is_refused():
    with pytest.raises(ValueError, match=r"Box of shape \(task_dim,\)"):
        callable_tasks(task_space=spaces.Box(0.0, 1.0, shape=(2, 2)))
    with pytest.raises(ValueError, match=r"Box of shape \(task_dim,\)"):
        callable_tasks(task_space=spaces.Discrete(3))
    with pytest.raises(ValueError, match="feature_dim must be at least 1, not 0"):
        callable_tasks(feature_dim=0)
    with pytest.raises(ValueError, match=r"tasks must have shape \(n_tasks, 2\), not \(3, 1\)"):
        callable_tasks(tasks=np.zeros((3, 1)))
