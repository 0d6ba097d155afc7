"""`POST /v1/classify`."""

from __future__ import annotations

import uuid

from fastapi import APIRouter

from engine.api.classifying import Classifier
from engine.api.schemas_classify import Classification, ClassifyRequest
from engine.api.strict_json import StrictRoute
from engine.api.tenancy import Tenant


def classify_router(classifier: Classifier) -> APIRouter:
    """The route that labels texts."""
    router = APIRouter(route_class=StrictRoute, tags=["classify"])

    @router.post("/v1/classify")
    async def classify(request: ClassifyRequest, tenant: Tenant) -> Classification:
        """Label texts with an adapter that was tuned for it, with the probability of each of its labels."""
        return await classifier.classify(request, f"classify-{uuid.uuid4().hex}", tenant=tenant)

    return router
