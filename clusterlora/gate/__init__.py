"""The gate: cluster 0 must meet criteria on its val items before the other clusters are trained."""
