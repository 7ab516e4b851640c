"""A page in the browser to ask trained networks: an image, what each says of it, and its attention, stage by stage.

``page`` lays it out with Gradio, ``desk`` answers it, ``serve`` opens it to this machine alone. ``examples`` finds
images to begin with, ``views`` chooses and draws what lies over an image, ``sentences`` says it in words, ``names``
tells networks apart. Needs the extra ``csham[app]``. Start with :func:`csham.app.serve.serve`.
"""

from csham._lazy import lazy_names

__getattr__ = lazy_names(__name__, {})
