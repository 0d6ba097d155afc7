"""Ray Serve deployments: thin shells around plain components. The only package that imports Ray."""
