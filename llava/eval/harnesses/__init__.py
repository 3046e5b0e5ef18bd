"""This project's model in evaluation harnesses of others."""
