"""Code for single platforms: products, convolutions, factorisations, dispatch, preferences."""
