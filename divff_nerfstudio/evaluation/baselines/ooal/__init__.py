"""OOAL (Li et al., "One-Shot Open Affordance Learning with Foundation Models", CVPR 2024): where can one do that?"""
