//! What NVIDIA's management library (NVML, part of the driver) tells of a GPU: its driver, clock and temperature.

use nvml_wrapper::{
    Nvml,
    enum_wrappers::device::{Clock, TemperatureSensor},
};

use super::Device;

/// State of a GPU at a moment; absent is what the driver does not tell (a container may lack the library).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// The driver's own version, as `580.95.05`.
    pub driver_version: Option<String>,
    /// Clock of the multiprocessors.
    pub clock_mhz: Option<u32>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
}

impl Device {
    /// Asks now.
    pub fn state(&self) -> DeviceState {
        let Ok(nvml) = Nvml::init() else { return DeviceState::default() };
        // By identity: CUDA numbers the visible GPUs only, and may number them in another order.
        let uuid = self.context().uuid().map(|uuid| uuid_text(&uuid.bytes.map(|byte| byte as u8)));
        let device = uuid.ok().and_then(|uuid| nvml.device_by_uuid(uuid).ok());
        let device = device.as_ref();
        DeviceState {
            driver_version: nvml.sys_driver_version().ok(),
            clock_mhz: device.and_then(|device| device.clock_info(Clock::SM).ok()),
            temperature_c: device.and_then(|device| device.temperature(TemperatureSensor::Gpu).ok()),
        }
    }
}

/// The identity as the library writes it: `GPU-` and groups of 4, 2, 2, 2 and 6 bytes.
fn uuid_text(bytes: &[u8; 16]) -> String {
    let mut text = "GPU".to_owned();
    for (i, byte) in bytes.iter().enumerate() {
        if [0, 4, 6, 8, 10].contains(&i) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_written_as_the_driver_writes_them() {
        let bytes = std::array::from_fn(|i| (i * 17) as u8);
        assert_eq!(uuid_text(&bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
