"""The HTTP application, over whatever backends it is given."""

from __future__ import annotations

from fastapi import FastAPI

from engine import __version__
from engine.api import error_table
from engine.api.admission import Admission
from engine.api.answered import AnswerMemory
from engine.api.answering import Answerer
from engine.api.backends import Backends
from engine.api.classifying import Classifier
from engine.api.feedback import FeedbackTaker
from engine.api.middleware import RequestLimits
from engine.api.routes_adapters import adapters_router
from engine.api.routes_chat import chat_router
from engine.api.routes_classify import classify_router
from engine.api.routes_feedback import feedback_router
from engine.api.routes_generations import generations_router
from engine.api.routes_health import health_router
from engine.api.routes_jobs import jobs_router
from engine.api.routes_judgements import judgements_router
from engine.api.routes_knowledge import knowledge_router
from engine.api.routes_route import route_router
from engine.api.routing_only import RouteAsker
from engine.api.search_turns import SearchTurns
from engine.config import EngineConfig


def create_app(backends: Backends, config: EngineConfig, memory: AnswerMemory | None = None) -> FastAPI:
    """Build the ASGI application of one gateway replica; `memory` is where others may ask for its answers."""
    memory = AnswerMemory(config.gateway.rated_answers) if memory is None else memory
    app = FastAPI(title="Switchyard", version=__version__, docs_url=None, redoc_url=None)
    error_table.install(app)
    app.add_middleware(RequestLimits, settings=config.gateway)
    admission = Admission(config)
    app.include_router(chat_router(backends, Answerer(backends, config, memory, admission)))
    app.include_router(classify_router(Classifier(backends, config)))
    app.include_router(route_router(RouteAsker(backends, config)))
    app.include_router(feedback_router(backends, FeedbackTaker(backends, config, memory)))
    app.include_router(knowledge_router(backends, config, SearchTurns(config, lambda: admission.is_busy)))
    app.include_router(judgements_router(backends))
    app.include_router(generations_router(backends))
    app.include_router(jobs_router(backends))
    app.include_router(adapters_router(backends))
    app.include_router(health_router(backends))
    return app
