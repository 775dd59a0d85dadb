"""A real OpenAI-compatible server (llama.cpp, through xllamacpp) for the tests: python serve.py model.gguf port"""

import sys
import time

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
params.n_parallel, params.n_ctx, params.warmup = 4, 4 * 1024, False
server = xllamacpp.Server(params)
print("READY", flush=True)
while True:
    time.sleep(3600)
