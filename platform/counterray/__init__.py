"""counterray: counterfactual generators of medical images, and audits of diagnostic models, on Ray."""

__version__ = "0.1.0"
