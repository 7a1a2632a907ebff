"""What a machine has and a recipe needs, looked at before anything is trained."""
