# The project with its pinned packages, without torch. Everything that is written goes into mounted folders:
#   docker build -t kv-transition .
#   docker run --rm -v "$PWD/results:/project/results" -v "$PWD/journal:/project/journal" kv-transition
#   docker run --rm -v ... kv-transition results/report.md --configfile config/experiments/quick.yaml
# The mounted folders must be writable for user 1000 (or: docker run --user "$(id -u):$(id -g)").
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOME=/tmp \
    LOGNAME=kvt \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /project

# Packages first: they change less often than the code.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN pip install --constraint constraints.txt --editable . \
    && python -m compileall -q src

COPY Snakefile Makefile ./
COPY rules ./rules
COPY scripts ./scripts
COPY config ./config
COPY profiles ./profiles
COPY envs ./envs
COPY resources ./resources

# Any user may run it: what a run writes beside the mounted folders is open to all.
RUN useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin kvt \
    && mkdir -p results journal cache .snakemake \
    && chmod -R a+rwX results journal cache .snakemake resources

USER 1000

ENTRYPOINT ["snakemake", "--cores", "all"]
CMD ["results/report.md"]
