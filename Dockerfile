# csham on the CPU, with its commands and a compiler for its kernels:
#   docker build -t csham . && docker run --rm -v "$PWD:/data" -w /data csham train images
FROM python:3.12-slim

# g++ builds the kernels, git says which commit a run was made with.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/csham
COPY pyproject.toml constraints.txt LICENSE ./
COPY docs/package.md docs/package.md
COPY src src
RUN pip install --no-cache-dir "uv>=0.8" \
    && uv pip install --system --no-cache --torch-backend cpu --constraint constraints.txt ".[train,report,export,share,parquet]" \
    && useradd --uid 1000 --create-home csham

USER 1000
# Built once here, for every instruction set that PyTorch may choose.
RUN csham doctor --build
WORKDIR /data
ENTRYPOINT ["csham"]
CMD ["--help"]
