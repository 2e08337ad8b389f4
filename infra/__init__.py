"""What runs around pancrafter: servers for development, images, and deployment files. Nothing imports this."""
