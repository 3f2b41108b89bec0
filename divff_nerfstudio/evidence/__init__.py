"""What training frames tell of what moves, before anything is trained.

A pixel shows the room if the same place looks the same in all frames that see it. `sightings` finds, for each pixel,
the depth at which it does so best; `votes` lets pixels of one segment, and segments that look alike, decide together;
`labels` puts both together to a chance per training pixel that it shows an object or the camera wearer.
"""
