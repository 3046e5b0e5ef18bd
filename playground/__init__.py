"""A tiny world of photographs and handwritten digits, to see visual-token compression work in minutes."""
