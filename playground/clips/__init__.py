"""A world of short videos: on a photograph one digit moves, one changes and one is added, and questions ask which."""
