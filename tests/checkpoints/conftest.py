from tiny_models import language_folder, model, model_config

__all__ = ["language_folder", "model", "model_config"]
