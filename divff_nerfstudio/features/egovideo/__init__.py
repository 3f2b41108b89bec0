"""EgoVideo (Pei et al. 2024): its video and text towers, and features of clips of egocentric video made with them."""
