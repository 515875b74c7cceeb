from sb3_dreamer.dreamer_v2.dreamer_v2 import DreamerV2
from sb3_dreamer.dreamer_v2.exchange import export_model, import_model
from sb3_dreamer.dreamer_v2.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DreamerV2", "MlpPolicy", "MultiInputPolicy", "export_model", "import_model"]
