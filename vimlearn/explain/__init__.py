"""What a Vim looks at: maps of a network that has no attention to draw."""

from .attention import attribution, delta_maps, hidden_attention, hidden_attentions, on_grid, rollout
from .faithfulness import area, deletion_curve, insertion_curve, ranking, to_cells
from .field import reach, receptive_field, receptive_fields
from .figures import Mark, alt_text, class_token_mark, draw, draw_method, patch_area, query_mark
from .gradients import grad_cam, input_gradient, integrated_gradients
from .hidden import hidden_matrix, hidden_row, mean_hidden_matrix, steps
from .methods import METHODS, Method, explain
from .overlap import energy, intersection_over_union, pointing
from .records import Record, query_token, record
from .sanity import cascade, rank_correlation

__all__ = ["METHODS", "Mark", "Method", "Record", "alt_text", "area", "attribution", "cascade", "class_token_mark",
           "deletion_curve", "delta_maps", "draw", "draw_method", "energy", "explain", "grad_cam", "hidden_attention",
           "hidden_attentions", "hidden_matrix", "hidden_row", "input_gradient", "insertion_curve",
           "integrated_gradients", "intersection_over_union", "mean_hidden_matrix", "on_grid", "patch_area",
           "pointing", "query_mark", "query_token", "rank_correlation", "ranking", "reach", "receptive_field",
           "receptive_fields", "record", "rollout", "steps", "to_cells"]
