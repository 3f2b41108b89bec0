"""Where samples are worth their cost: a small field for proposal sampling, of all three layers at once."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from divff_nerfstudio.fields.encodings import PlaneEncoding
from divff_nerfstudio.fields.networks import Network
from divff_nerfstudio.fields.space import SceneSpace, activated_density


class ProposalField(nn.Module):
    """Density of the room and whatever rests or moves in it, plus density before the camera at times.

    Args:
        space: The scene's units.
    """

    def __init__(self, space: SceneSpace):
        super().__init__()
        self.space = space
        self.room = PlaneEncoding((64,), 8)
        self.room_network = Network(self.room.get_out_dim(), num_layers=2, layer_width=16, out_dim=1)
        self.camera = PlaneEncoding((32,), 4, time_resolution=32)
        self.camera_network = Network(self.camera.get_out_dim(), num_layers=2, layer_width=16, out_dim=1)

    def forward(
        self,
        positions: Float[Tensor, "points 3"],
        camera_positions: Float[Tensor, "points 3"],
        times: Float[Tensor, "points 1"],
    ) -> tuple[Float[Tensor, "points"], Float[Tensor, "points"]]:
        """Density of everything and of the room with what is in it, in 1 / scene unit."""
        room = activated_density(self.room_network(self.room(self.space.to_unit_cube(positions)))[:, 0], self.space)
        camera = self.camera_network(self.camera(self.space.to_camera_cube(camera_positions), times))
        return room + activated_density(camera[:, 0], self.space, shift=-2.0), room
