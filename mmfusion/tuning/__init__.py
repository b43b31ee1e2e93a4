"""KerasTuner over the same recipe files."""

from mmfusion.tuning.recipe_search import SearchResult, Trial, search_recipe, trial_recipe

__all__ = ["SearchResult", "Trial", "search_recipe", "trial_recipe"]
