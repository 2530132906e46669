"""What a Vim looks at: maps of a network that has no attention to draw."""

from .attention import attribution, delta_maps, hidden_attention, hidden_attentions, on_grid, rollout
from .faithfulness import area, deletion_curve, insertion_curve, ranking, to_cells
from .field import reach, receptive_field, receptive_fields
from .gradients import grad_cam, input_gradient, integrated_gradients
from .hidden import hidden_matrix, hidden_row, mean_hidden_matrix, steps
from .methods import METHODS, Method, explain
from .overlap import energy, intersection_over_union, pointing
from .records import Record, query_token, record
from .sanity import cascade, rank_correlation

__all__ = ["METHODS", "Method", "Record", "area", "attribution", "cascade", "deletion_curve", "delta_maps", "energy",
           "explain", "grad_cam", "hidden_attention", "hidden_attentions", "hidden_matrix", "hidden_row",
           "input_gradient", "insertion_curve", "integrated_gradients", "intersection_over_union",
           "mean_hidden_matrix", "on_grid", "pointing", "query_token", "rank_correlation", "ranking", "reach",
           "receptive_field", "receptive_fields", "record", "rollout", "steps", "to_cells"]
