"""What a Vim looks at: maps of a network that has no attention to draw."""

from .attention import attribution, delta_maps, hidden_attention, hidden_attentions, on_grid, rollout
from .field import reach, receptive_field, receptive_fields
from .figures import Mark, alt_text, class_token_mark, draw, draw_method, patch_area, query_mark
from .gradients import grad_cam, input_gradient, integrated_gradients
from .hidden import hidden_matrix, hidden_row, mean_hidden_matrix, steps
from .methods import METHODS, Method, explain
from .records import Record, query_token, record

__all__ = ["METHODS", "Mark", "Method", "Record", "alt_text", "attribution", "class_token_mark", "delta_maps", "draw",
           "draw_method", "explain", "grad_cam", "hidden_attention", "hidden_attentions", "hidden_matrix", "hidden_row",
           "input_gradient", "integrated_gradients", "mean_hidden_matrix", "on_grid", "patch_area", "query_mark",
           "query_token", "reach", "receptive_field", "receptive_fields", "record", "rollout", "steps"]
