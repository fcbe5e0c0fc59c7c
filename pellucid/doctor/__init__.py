"""Says what a model file is and whether it was read right, also where it cannot be opened."""

from pellucid.doctor.diagnosis import diagnose
from pellucid.doctor.findings import Diagnosis
from pellucid.doctor.preprocessing import PreprocessingGuess, guess_preprocessing

__all__ = ["Diagnosis", "PreprocessingGuess", "diagnose", "guess_preprocessing"]
