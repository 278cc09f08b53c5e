"""Interventions with judged answers: ablation, steering, patching."""
