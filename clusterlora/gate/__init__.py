"""The gate: one cluster must meet criteria on its val items before the other clusters are trained."""
