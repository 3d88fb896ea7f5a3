// Pictures, videos and the camera.

const PICTURE = { imageOrientation: "from-image", colorSpaceConversion: "none" }; // as bssnet_zoo reads it

export function readPicture(blob) {
  return createImageBitmap(blob, PICTURE);
}

/** A video file or the camera: frames that nobody has time for are dropped. */
export class Moving {
  /** When `isWanted()` a frame is taken, and `onFrame` gets its bitmap, or null if that failed. */
  constructor(name, isWanted, onFrame) {
    Object.assign(this, { name, isWanted, onFrame });
    this.video = Object.assign(document.createElement("video"), { muted: true, loop: true, playsInline: true });
    this.video.onpause = this.video.onplay = () => this.onchange?.(); // the system may pause it too
  }

  async openFile(blob) {
    this.url = URL.createObjectURL(blob);
    this.video.src = this.url;
    await this.#play();
    if (!this.video.videoWidth) throw new Error("It has sound only, or pictures that this browser can't read.");
  }

  async openCamera() {
    if (!navigator.mediaDevices) throw new Error("Browsers give the camera to https pages and to localhost only.");
    const video = { facingMode: "environment", width: { ideal: 1280 } };
    this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    for (const track of this.video.srcObject.getTracks()) track.onended = () => this.onlost?.(); // unplugged, say
    await this.#play();
  }

  async #play() {
    await this.video.play();
    this.#next();
  }

  #next() {
    const { video } = this;
    const step = () => {
      if (this.ended) return;
      if (!video.paused && this.isWanted()) this.frame().then(this.onFrame, () => this.onFrame(null));
      this.#next();
    };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(step);
    else requestAnimationFrame(step);
  }

  frame() {
    return createImageBitmap(this.video);
  }

  get paused() {
    return this.video.paused;
  }

  /** Pauses or goes on; resolves to whether it is paused now. */
  async toggle() {
    if (this.video.paused) await this.video.play();
    else this.video.pause();
    return this.video.paused;
  }

  end() {
    this.ended = true;
    this.video.pause();
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    if (this.url) URL.revokeObjectURL(this.url);
  }
}
