"""Updates while the environments step: when they are made, and that processes do not change them."""

import gymnasium as gym
import pytest
import torch as th
from line_walk import make_line_walk
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecNormalize

import hipi_sb3
from hipi_sb3 import HIPISAC

N_STEPS, LEARNING_STARTS = 60, 20
OPTIONS = {"learning_starts": LEARNING_STARTS, "batch_size": 16, "seed": 0}


class Diary(VecEnvWrapper):
    """Writes down what the environments were asked."""

    def __init__(self, venv, diary):
        super().__init__(venv)
        self.diary = diary

    def reset(self):
        return self.venv.reset()

    def step_async(self, actions):
        self.diary.append("actions")
        self.venv.step_async(actions)

    def step_wait(self):
        self.diary.append("results")
        return self.venv.step_wait()


class WatchedSAC(HIPISAC):
    """Writes down updates, and what the buffer had then."""

    def _update(self, data, update_targets):
        self.diary.append(("update", self.replay_buffer.size()))
        return super()._update(data, update_targets)


def make_learner(kind=HIPISAC, vec_env=None, overlap=True, **options):
    model = kind(
        "MultiInputPolicy", vec_env or DummyVecEnv([make_line_walk]), policy_kwargs={"net_arch": [16]}, **OPTIONS, **options
    )
    model.update_while_stepping = overlap
    return model


def watched(overlap, n_steps=LEARNING_STARTS + 3, **options):
    diary = []
    model = make_learner(WatchedSAC, Diary(DummyVecEnv([make_line_walk]), diary), overlap, **options)
    model.diary = diary
    model.learn(n_steps)
    return diary


def test_updates_come_between_actions_and_results_and_the_last_at_the_end():
    n = LEARNING_STARTS
    before = ["actions", "results"] * (n + 1)
    assert watched(overlap=False) == [
        *before,
        *[("update", n + 1), "actions", "results"],
        *[("update", n + 2), "actions", "results"],
        ("update", n + 3),
    ]
    assert watched(overlap=True) == [
        *before,
        *["actions", ("update", n + 1), "results"],
        *["actions", ("update", n + 2), "results"],
        ("update", n + 3),
    ]


def test_all_updates_of_a_rollout_are_made_in_the_first_step_of_the_next():
    diary = watched(overlap=True, n_steps=LEARNING_STARTS + 8, train_freq=4, gradient_steps=2)
    updates = [("update", LEARNING_STARTS + 4)] * 2
    start = diary.index(updates[0])
    assert diary[start - 1 : start + 3] == ["actions", *updates, "results"]
    assert diary[start + 3 :] == ["actions", "results"] * 3 + [("update", LEARNING_STARTS + 8)] * 2


@pytest.mark.parametrize("stop_after", [None, LEARNING_STARTS + 9])
def test_callbacks_see_all_updates_at_the_end(stop_after):
    class AtTheEnd(BaseCallback):
        n_updates = None

        def _on_step(self):
            return self.num_timesteps != stop_after

        def _on_training_end(self):
            self.n_updates = self.model._n_updates

    callback, model = AtTheEnd(), make_learner()
    model.learn(N_STEPS, callback=callback)
    assert model._owed is None and callback.n_updates == model._n_updates
    # Stable-baselines3 makes no updates after the step at which a callback stops it.
    assert model._n_updates == (N_STEPS if stop_after is None else stop_after - 1) - LEARNING_STARTS


def test_networks_act_in_evaluation_mode_after_updates():
    model = make_learner(train_freq=2)
    model.learn(N_STEPS)
    assert not model.actor.training
    assert model._owed is None


@pytest.mark.parametrize("normalized", [False, True])
def test_a_seed_gives_the_same_run_in_other_processes(normalized):
    learned = []
    for kind in (DummyVecEnv, SubprocVecEnv):
        vec_env = kind([make_line_walk] * 2)
        model = make_learner(vec_env=VecNormalize(vec_env, norm_obs_keys=["observation"]) if normalized else vec_env)
        model.learn(N_STEPS)
        learned.append(model.policy.state_dict())
        model.env.close()
    assert all(th.equal(value, learned[1][key]) for key, value in learned[0].items())


def test_as_many_updates_as_without_it():
    n_updates = {overlap: make_learner(overlap=overlap).learn(N_STEPS)._n_updates for overlap in (False, True)}
    assert n_updates[True] == n_updates[False] == N_STEPS - LEARNING_STARTS


@pytest.mark.parametrize("name", ["HIPISAC", "HIPITD3", "HIPIDDPG", "HIPITQC"])
def test_every_algorithm_of_continuous_actions(name):
    model = make_learner(getattr(hipi_sb3, name)).learn(N_STEPS)
    assert model._n_updates == N_STEPS - LEARNING_STARTS


@pytest.mark.parametrize("name", ["HIPIDQN", "HIPIQRDQN"])
def test_every_algorithm_of_discrete_actions(name):
    vec_env = DummyVecEnv([lambda: Monitor(gym.make("PointFourRoomsGrid-v0"))])
    model = make_learner(getattr(hipi_sb3, name), vec_env, train_freq=1).learn(N_STEPS)
    assert model._n_updates == N_STEPS - LEARNING_STARTS


def test_rewards_that_an_environment_would_be_asked_for_in_the_middle_of_its_step_are_refused(monkeypatch):
    model = make_learner()
    monkeypatch.setattr(type(model.replay_buffer.family), "can_wait", False)
    with pytest.raises(ValueError, match=r"no second instance of it could be made\. Register the environment"):
        model.learn(30)


def test_a_saved_model_goes_on(tmp_path):
    make_learner().learn(N_STEPS).save(tmp_path / "model")
    model = HIPISAC.load(tmp_path / "model", DummyVecEnv([make_line_walk]))
    assert model.update_while_stepping
    model.learn(N_STEPS, reset_num_timesteps=False)
    assert model.num_timesteps == 2 * N_STEPS


def test_updates_by_hand_are_made_at_once(tmp_path):
    class StopEarly(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 30

    model = make_learner()
    model.learn(N_STEPS, callback=StopEarly())
    before = model._n_updates
    model.train(5, 16)
    assert model._n_updates == before + 5 and model._owed is None
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = HIPISAC.load(tmp_path / "model", DummyVecEnv([make_line_walk]))
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(model.logger)
    loaded.train(5, 16)
    assert loaded._n_updates == before + 10


def test_each_environment_keeps_exploration_of_its_own_with_gsde():
    matrices = []

    class Count(BaseCallback):
        def _on_step(self):
            matrices.append(len(self.model.actor.action_dist.exploration_matrices))
            return True

    model = make_learner(vec_env=DummyVecEnv([make_line_walk] * 3), use_sde=True, train_freq=4)
    model.learn(N_STEPS, callback=Count())
    assert set(matrices) == {3} and model._n_updates > 0
