"""The reference example of the posterior: three transitions, three tasks, gamma = 0.99, T = 1."""

import numpy as np

GAMMA = 0.99
REWARDS = np.array([[-1.0, -1, 0], [0, -1, -1], [-1, 0, -1]])
TERMINATED = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=bool)
#: log pi(a_i | s_i, psi_j)
LOG_PROB = np.array([[-1.0, -2.5, -0.5], [-0.2, -1.5, -3], [-2, -1, -0.7]])
#: Q(s'_i, a', psi_j)
NEXT_Q = np.array([[-5.0, -3, -8], [-6, -4, -2], [-7, -1, -9]])

TD_SCORES = np.array([[-5.95, -3.97, 0], [0, -4.96, -2.98], [-7.93, 0, -9.91]])
PAPER_SCORES = np.array([[-4.95, -1.47, 0.5], [0.2, -3.46, 0.02], [-5.93, 1, -9.21]])
LOG_SUM_EXP_PAPER = np.array([0.207944, 1.091802, 0.981712])

POSTERIOR_PAPER_BATCH = np.array(
    [[0.008212, 0.110135, 0.881653], [0.716374, 0.007617, 0.276009], [0.002361, 0.997598, 0.000041]]
)
POSTERIOR_PAPER_NONE = np.array(
    [[0.003756, 0.121929, 0.874315], [0.537345, 0.013827, 0.448828], [0.000977, 0.998986, 0.000037]]
)
POSTERIOR_TD_BATCH = np.array([[0.002671, 0.018915, 0.978413], [0.947566, 0.006497, 0.045937], [0.000368, 0.999584, 0.000048]])
