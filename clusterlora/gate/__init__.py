"""The gate: cluster 0 must convince on its val items before the other clusters are paid for."""
