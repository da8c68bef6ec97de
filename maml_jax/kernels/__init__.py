"""What one platform needs: products, convolutions, factorisations, waiting, preferences."""
