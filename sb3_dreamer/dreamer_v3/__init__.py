from sb3_dreamer.dreamer_v3.dreamer_v3 import DreamerV3
from sb3_dreamer.dreamer_v3.exchange import export_model, import_model
from sb3_dreamer.dreamer_v3.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DreamerV3", "MlpPolicy", "MultiInputPolicy", "export_model", "import_model"]
