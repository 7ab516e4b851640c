"""A page in the browser to ask a trained network: drop an image, see the answer and the attention, stage by stage.

``page`` lays it out with Gradio, ``serve`` opens it to this machine alone. Needs the extra ``csham[app]``. Start with
:func:`csham.app.serve.serve`.
"""
