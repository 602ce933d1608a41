# Images of mqtool and of its embedded broker. Build them in the root of the repository:
#
#   docker build -f mqtool/broker/image/tools.Dockerfile --target mqtool -t mqtool .          the command line
#   docker build -f mqtool/broker/image/tools.Dockerfile --target broker -t mqtool-broker .   a broker for tests
#   docker run --rm -p 127.0.0.1:5672:5672 -p 127.0.0.1:15672:15672 mqtool-broker [OPTIONS OF mqtool broker serve]
#
# To build without a package index, run `.ci/wheels wheels` first (see .ci/compose), and add
# --build-arg PIP_OPTIONS="--no-index --find-links /src/wheels".
ARG PYTHON_IMAGE=python:3.13-slim-trixie
FROM ${PYTHON_IMAGE} AS build
ARG PIP_OPTIONS=
COPY . /src
# pip checks the hashes of all libraries, and of the packages that build mqtool.
RUN python3 -m venv /opt/mqtool \
    && /opt/mqtool/bin/pip install --no-cache-dir --disable-pip-version-check $PIP_OPTIONS \
        --require-hashes --only-binary :all: --requirement /src/.ci/requirements/image.txt \
    && /opt/mqtool/bin/pip install --no-cache-dir --disable-pip-version-check \
        --no-index --no-build-isolation --no-deps /src \
    && /opt/mqtool/bin/pip uninstall --quiet --yes hatchling pathspec pluggy trove-classifiers pip setuptools

FROM ${PYTHON_IMAGE} AS mqtool
COPY --from=build /opt/mqtool /opt/mqtool
RUN useradd --create-home mqtool
ENV PATH=/opt/mqtool/bin:$PATH HOME=/home/mqtool
USER mqtool
WORKDIR /home/mqtool
ENTRYPOINT ["mqtool"]

FROM mqtool AS broker
EXPOSE 5672 15672
# Any HTTP response, even an error, shows that the broker accepts connections and responds to clients.
HEALTHCHECK --interval=2s --timeout=5s --retries=5 CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/15672 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && read -r -t 4 line <&3 && [[ $line == HTTP/* ]]"]
# A broker in a container sees all clients as other machines, so guest may log in from any address. Publish the ports on
# the loopback address only.
ENTRYPOINT ["mqtool", "broker", "serve", "--host", "0.0.0.0", "--guest-from-anywhere", "--management-port", "15672", "--recording"]
